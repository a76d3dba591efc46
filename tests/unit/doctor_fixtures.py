"""Small helpers that the tests of the doctor share."""

from everclip.prepare.doctor.finding import Finding


def only(findings: list[Finding], name: str) -> Finding:
    found = [finding for finding in findings if finding.name == name]
    assert len(found) == 1, findings
    return found[0]


def states(findings: list[Finding]) -> set[str]:
    return {finding.state for finding in findings}
