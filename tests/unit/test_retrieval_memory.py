"""The COCO-sized evaluation, 25,000 texts x 5,000 images, stays far below one score matrix of that size.

The dense float32 scores alone are 500 MB, CLIP_benchmark's one-hot relation several times that.
"""

import json
import subprocess
import sys

SCRIPT = """
import json, resource, torch
from everclip.evaluation import retrieval

def peak():
    unit = 1 if __import__("sys").platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
images = torch.randn(5000, 64, generator=generator)
texts = images.repeat_interleave(5, 0) + 3 * torch.randn(25000, 64, generator=generator)
torch.ones(64, 64).double() @ torch.ones(64, 64).double()  # libraries are loaded before the measurement
before = peak()
to_image = retrieval.Positives.from_lists([[text // 5] for text in range(25000)])
hit = float(retrieval.hits_at_k(retrieval.positive_ranks(texts, images, to_image), 10).double().mean())
to_text = retrieval.Positives.from_lists([list(range(5 * image, 5 * image + 5)) for image in range(500)])
retrieval.positive_ranks(images[:500], texts, to_text)
retrieval.top_k(texts[:5000], images, 10)
print(json.dumps({"grown": peak() - before, "hit": hit}))
"""


def test_peak_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=300
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert 0.05 < result["hit"] < 0.95
    assert result["grown"] < 250e6, f"grew by {result['grown'] / 1e6:.0f} MB"
