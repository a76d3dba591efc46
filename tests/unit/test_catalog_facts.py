"""The facts of the catalogue as they were compared with the data sets' own: an edit by accident changes a digest."""

from __future__ import annotations

import hashlib

import pytest

from everclip.data.catalog.cards import Card, cards

DIGESTS = {
    ("aircraft", "names"): "e1c9e72060e63d526dce032008262a95f573b02e802be7be42f0cb6ccd5b4217",
    ("aircraft", "texts"): "91522de75ad4471161537f83b8a0652763a74efa59123fb88a77efc46a5baa3e",
    ("caltech101", "names"): "5c765dd4b151cbf354b5dd786e176fee46aedd4fb97688575510b4956221fe3c",
    ("caltech101", "texts"): "90561580b7ea5dbaf0161ef4dd5b47ae922b3a209da4fd5d3ddf7585bcc23157",
    ("caltech101", "labels"): "221ee8f768ef04fd3fbd6304b7a5fe0da9830df9d80be860d438136f882dddcc",
    ("cars", "names"): "93d089469409bbd00725ce041797cad929e156fba50c3e19a0f49ef65efcb990",
    ("cars", "texts"): "f2a81a6f412ddb929702f79c09fb6291a37ae10f82bdce539d03dea78a337d64",
    ("cifar100", "names"): "60ae3a3ac1355fcfec19c0ea3cb5fde15203ecf3b537cabcf6d5d54688ee9a4d",
    ("cifar100", "texts"): "9bbf912e1144ca4c7de308d478b5ced7ea3df9e61ce5d100ef184831bb5dc715",
    ("cifar100", "order"): "ec192c9825688ef30c66b6e80fdb5d1ae90edf342741ed905b0c1be9c70fb03f",
    ("core50", "names"): "a79c46a5c46b7365728f3c460354c97f50b43b46dea17e7a07bb41b77e26f2f3",
    ("core50", "texts"): "84fe8344d6c554cd4ed81fb6c533346ffbac1a88eabc7c3f52abf645c8d141e6",
    ("dtd", "names"): "681d23b9cd3c2edec8ff7ea1fd6f5dd92f3b8d1dfb5a43fd0faee72a116c1130",
    ("dtd", "texts"): "1f6888d2130f62a4430711bd4d66af9622fba635594f64f7e51c07248cec899e",
    ("eurosat", "names"): "ee2e41b9973e7206862cbcded186c61be7b413418248f678e1bf80179da28d9c",
    ("eurosat", "texts"): "9bc85d9f1798d03b9991ddfa721493693040d8c222e2f8d8bbf5a0c3ca2507e8",
    ("eurosat", "labels"): "5398b285617b672da939727d38c927ab9207630409f5a1a2bc1c3a834d2031ff",
    ("flowers", "names"): "0d27092c2140383d4f002dc99d20c184d58ffdc454e5f4d12f0475b4e23480ee",
    ("flowers", "texts"): "bfcd4bbb214d501571cbd68b67ec7b6c86645edc476df3fe0f65c9249d3c50c7",
    ("food101", "names"): "9c0eeb5a368baacb40650cccd4b8cbc4a735bfad22fddc8ba521a99d8892f690",
    ("food101", "texts"): "5fe2073735d36f85e4d605232a20add29bc6883942940bc3b7826874c29d2141",
    ("imagenet", "texts"): "84fe8344d6c554cd4ed81fb6c533346ffbac1a88eabc7c3f52abf645c8d141e6",
    ("imagenet", "order"): "a5753245994eefcdf37aa9b2726f0005e8170f05aa2402639b976545388ccf6c",
    ("imagenet100", "texts"): "84fe8344d6c554cd4ed81fb6c533346ffbac1a88eabc7c3f52abf645c8d141e6",
    ("imagenet100", "order"): "bb725bba481bb21403041484dc73591c96ae21980bea927673176c13ec2ddef9",
    ("mnist", "names"): "031c28cf00ed68f367f0944eee3c785e43dc82b19b8b763b4766462a7b95db55",
    ("mnist", "texts"): "c0341e0a1fdfd8fb441a865f926ed68cb9e470397caae1351be2ed752cccaa7e",
    ("mnist", "labels"): "dfab20279a0857952f4261ebbc7fd6e27996c6eb067c1fc8fc3ae4bd82eee209",
    ("pets", "names"): "50be1443390f8a02e835fed1dbc90ef03af4f27253569f3f55aede2cb62915be",
    ("pets", "texts"): "16a0790f0e45e97e33950cca7bb403ace4980897f60a295992f2e7aeb85507a1",
    ("sun397", "names"): "232c2aaaf05d1d1eb364c4467d85a403014ddfe654ae9d864c00886426f43c6b",
    ("sun397", "texts"): "c97a3d1ad58198007966a354d239e288f2f79fa2479aaf7ce6c11f7a6b876efb",
    ("tinyimagenet", "names"): "9b0391f2ac3ac290a48321d0e15ca18b0f7356c22105a881373a0c9d1f185651",
    ("tinyimagenet", "texts"): "e5f8e092fa9e53985638451c2577b44d724119ee9b6a981b3ae9be4729c00fbb",
    ("tinyimagenet", "order"): "003f8856566300292e717552f14fe7d9b8e12d01cb01a61ed222a72bd76be2f6",
}
"""card, field -> SHA-256 of its lines; names, templates and labels as they are written, orders as decimal numbers."""


def written(card: Card) -> dict[str, tuple[object, ...]]:
    """Return the lists in a card's own file, not those of ImageNet or of the data."""
    fields = {"names": card.classes, "texts": card.templates, "order": card.order, "labels": card.labels}
    return {name: held for name, held in fields.items() if isinstance(held, tuple) and held}


def digest(lines: tuple[object, ...]) -> str:
    return hashlib.sha256("\n".join(map(str, lines)).encode()).hexdigest()


def test_every_list_of_every_card_has_a_digest() -> None:
    assert {(name, field) for name, card in cards().items() for field in written(card)} == set(DIGESTS)


@pytest.mark.parametrize("name", sorted({name for name, _ in DIGESTS}))
def test_names_templates_and_orders_are_those_that_were_compared_with_the_data_sets(name: str) -> None:
    found = {(name, field): digest(held) for field, held in written(cards()[name]).items()}
    assert found == {key: value for key, value in DIGESTS.items() if key[0] == name}


def test_two_names_in_another_place_or_one_letter_change_a_digest() -> None:
    names = cards()["eurosat"].names
    swapped = (names[1], names[0], *names[2:])
    assert len({digest(names), digest(swapped), digest((names[0].title(), *names[1:]))}) == 3
