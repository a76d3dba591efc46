"""Say which emoji a drawing of another set shows, from the name of the drawing; `build_drawings.py` uses this.

A name counts only if it is certain: it is the English CLDR name of one emoji, or the name of its character
in Unicode, or it stands in `NAMED` below, where every entry was compared with the drawing. A name of two
emoji counts for neither. Emoji newer than `NEWEST` never count.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

NEWEST = 2015  # the emoji that builtin:tiny knows
BY_TABLE, BY_CLDR, BY_CHARACTER = range(3)  # how a name was found, the most certain first

_OLDER_CLDR = """
a-button=1f170 ab-button=1f18e b-button=1f171 o-button=1f17e up-text-button=1f199 up-exclamation-button=1f199
blond-haired-person=1f471 man-with-chinese-cap=1f472 man-in-suit-levitating=1f574 laptop-computer=1f4bb
grinning-cat-face=1f63a kissing-cat-face=1f63d smiling-cat-face-with-heart-eyes=1f63b
heavy-heart-exclamation=2763 exclamation-mark=2757 question-mark=2753 keycap-asterisk=2a-20e3
keycap-pound=23-20e3 on-exclamation-arrow=1f51b grinning-face-with-smiling-eyes=1f604
flag-for-black-flag=1f3f4 flag-for-white-flag=1f3f3 flag-for-chequered-flag=1f3c1 flag-for-crossed-flags=1f38c
flag-for-triangular-flag=1f6a9 flag-for-macau-sar-china=1f1f2-1f1f4 flag-for-macedonia=1f1f2-1f1f0
flag-for-myanmar=1f1f2-1f1f2 flag-for-swaziland=1f1f8-1f1ff flag-for-cocos-islands=1f1e8-1f1e8
"""
# The set's own short names. Several are the names of other emoji in CLDR: `cat` is the face of a cat, `star`
# the glowing star, `kiss` a kissing face, `sunglasses` a face with sunglasses.
_FXEMOJI = """
2hearts=1f495 acorn=1f330 americasglobe=1f30e anger=1f4a2 angry=1f620 anguish=1f627 aok=1f44c
anticlockwiseupwardsanddownwardsarrows=1f504 arrowrightwardsdownwards=2935 arrowrightwardsupwards=2934
asiaaustraliaglobe=1f30f astonished=1f632 backwithleftwardsarrow=1f519 ballottboxwithballott=1f5f3
banknotedollar=1f4b5 banknoteeuro=1f4b6 banknotepound=1f4b7 banknoteyen=1f4b4 beachumbrella=1f3d6
bellcancellation=1f515 blackdownpointingdoublearrow=23ec blackleftpointingarrow=25c0
blackleftpointingdoublearrow=23ea blackquestionmark=2753 blackrightpointingarrow=25b6
blackrightpointingdoublearrow=23e9 blackuppointingdoublearrow=23eb blackwaving=1f3f4 blonde=1f471 bolt=26a1
bookmarktab=1f4d1 boot=1f462 bow=1f380 bowing=1f647 bride=1f470 bunny=1f430 bunny-ears=1f46f bunnyside=1f407
cat=1f431 catside=1f408 cellphone=1f4f1 chartdownwardstrend=1f4c9 chartupwardstrend=1f4c8
chartupwardstrendyen=1f4b9 chilipepper=1f336 chineseflag=1f1e8-1f1f3 cjkunifiedideograph-a=1f22f
cjkunifiedideograph-b=1f23a cjkunifiedideograph-c=1f232 cjkunifiedideograph-d=1f233
cjkunifiedideograph-e=1f234 cjkunifiedideograph-f=1f235 cjkunifiedideograph-g=1f236
cjkunifiedideograph-h=1f237 cjkunifiedideograph-i=1f21a cjkunifiedideograph-j=1f238
cjkunifiedideograph-k=1f239 clap=1f44f clock12oclock=1f55b clock12thirty=1f567 clock1oclock=1f550
clock1thirty=1f55c clock2oclock=1f551 clock2thirty=1f55d clock3oclock=1f552 clock3thirty=1f55e
clock4oclock=1f553 clock4thirty=1f55f clock5thirty=1f560 clock6oclock=1f555 clock6thirty=1f561
clock7oclock=1f556 clockwisedownupcircledarrows=1f503 clockwiserightwardsleftwardscirclearrows=1f501
clockwiserightwardsleftwardscirclearrowsone=1f502 closedmailboxlowered=1f4ea closedmailboxraised=1f4eb
coldsweat=1f630 confetti=1f38a confounded=1f616 confused=1f615 construct=1f477 construction=1f3d7
contact=1f464 contact2=1f465 controlknob=1f39b cop=1f46e couple=1f491 couplekiss=1f48f crying=1f622
dash=1f4a8 devilhorns=1f608 diamondshapewithdotinside=1f4a0 disappointed=1f61e dissapointedrelief=1f625
dog=1f436 dogside=1f415 doubleexclaimationmark=203c down=1f447 downpointingsmallredtrisngle=1f53d
dragonhead=1f432 dragonside=1f409 eightspokedasterix=2733 endwithleftwardsarrow=1f51a
envelopedownarrowabove=1f4e9 europeafricaglobe=1f30d evergreen=1f332 exclaimationquestionmark=2049
expressionless=1f611 fallingleaf=1f342 fearful=1f628 fishcakeswirl=1f365 fistedhand=1f44a flexbicep=1f4aa
floppydisk2=1f4be flushed=1f633 forkknife=1f37d franceflag=1f1eb-1f1f7 frontfacingchick=1f425 frown=1f64d
frownmouth=1f626 gem=1f48e girlgirl=1f46d girlguy=1f46b gma=1f475 gpa=1f474 greatbritainflag=1f1ec-1f1e7
grimacing=1f62c grin=1f600 grineyes=1f601 grinsquint=1f606 grinsweat=1f605 grintears=1f602 grinwide=1f603
grinwideeyes=1f604 guapimao=1f472 guyguy=1f46c halo=1f607 hampster=1f439 hand=270b handheldvideocamera=1f4f9
hands=1f450 handup=1f64b headmassage=1f486 heartarrow=1f498 hearteyes=1f60d heartgreen=1f49a
heartpurple=1f49c heartribbon=1f49d heartyellow=1f49b heavyexclaimationmarksymbol=2757
heavymultiplicationsymbol=2716 heels=1f460 high5=1f64c highbrightness=1f506 highspeedtrainbulletnose=1f685
hourglassflowingsand=23f3 hushed=1f62f index=261d italianflag=1f1ee-1f1f9 japaneseangrymask=1f47a
japanflag=1f1ef-1f1f5 kiss=1f617 kissclosedeyes=1f61a kisseyes=1f619 kissing=1f618 koreaflag=1f1f0-1f1f7
leaffluttering=1f343 left=1f448 leftmagnifyingglass=1f50d leopardside=1f406 lockandkey=1f510
loudlycrying=1f62d lowbrightness=1f505 lowerleftpen=1f58a mahjong=1f004 makeupbag=1f45d
manltepiececlock=1f570 mansshirt=1f455 medicalmask=1f637 mensrunner=1f45f mensshoe=1f45e meridianglobe=1f310
monkeyhear=1f649 monkeysee=1f648 monkeyspeak=1f64a mouse=1f42d mouseside=1f401
negativesquaredlatincaptiala=1f170 negativesquaredlatincaptialb=1f171 negativesquaredlatincaptialo=1f17e
neutral=1f610 nogesture=1f645 nomouth=1f636 nooneunder18symbol=1f51e notebookdecorativecover=1f4d4
okgesture=1f646 onarrowleftright=1f51b openmailboxlowered=1f4ed openmailboxraised=1f4ec openmouth=1f62e
outbox=1f4e4 pensive=1f614 perservere=1f623 phonerightarrowleft=1f4f2 pig=1f437 pigside=1f416 pigsnout=1f43d
pinkwallet=1f45b poo=1f4a9 potablewatersystem=1f6b0 pout=1f64e pouting=1f621 pray=1f64f present=1f381
racecar=1f3ce raincloud=1f327 raisedhandpartfingers=1f596 raisedhandsfingerssplayed=1f590 relieved=1f60c
reminder=1f397 reversehandmiddlefinger=1f595 right=1f449 rightmagnifyingglass=1f50e running=1f3c3
russianflag=1f1f7-1f1fa saggitarius=2650 sandals=1f461 screamfear=1f631 silhouetteohjapan=1f5fe
sixpointedstarwithdot=1f52f sleeping=1f634 sleepy=1f62a sleuthspy=1f575 smallfrown=1f641 smallsmile=1f642
smileeyes=1f60a smiletongue=1f60b smirk=1f60f snowcloud=1f328 snowmountains=1f3d4 soonwithrightarrow=1f51c
spanishflag=1f1ea-1f1f8 speaker3soundwaves=1f50a speakercancellation=1f507 speakeronesoundwave=1f509
speechbubble=1f4ac spurtingwhale=1f433 squaredup=1f199 star=1f31f stormcloud=1f329 studiomic=1f399
sunglasses=1f60e sunraincloud=1f326 sunrays=2600 sweat=1f613 sweatsplash=1f4a6 swimming=1f3ca
telephonereceiver2=1f4de ten=1f51f tennisball=1f3be thoughtbaloon=1f4ad tie=1f454 tiger=1f42f
tigerside=1f405 tired=1f62b tongueout=1f61b tongueoutwink=1f61c tongueoutwink2=1f61d topwithupwardsarrow=1f51d
toykotower=1f5fc triumph=1f624 turban=1f473 umbrella=1f302 unamused=1f612 up=1f446
uppointingsmallredtrisngle=1f53c videocasette=1f4fc waitress=1f481 walking=1f6b6 waningbibbousmoon=1f316
wave=1f30a waving=1f44b weary=1f629 whiteexclaimationmark=2755 whitesunsmallcloud=1f324 winking=1f609
womansshirt=1f45a worried=1f61f
"""


def _table(text: str) -> dict[str, str]:
    """Read `name=emoji id` pairs."""
    return dict(pair.split("=") for pair in text.split())


NAMED: dict[str, dict[str, str]] = {
    "emojione": _table(_OLDER_CLDR),
    "emojione-v1": _table(_OLDER_CLDR),
    "noto-v1": _table(_OLDER_CLDR),
    "fxemoji": _table(_FXEMOJI),
}
"""By style: name of a drawing -> emoji, where CLDR and Unicode say nothing or mean another emoji."""
REFUSED: dict[str, frozenset[str]] = {
    # Not the emoji of this name (a piano with jacks, perhaps the heavier sparkle), or drawn in part only.
    "emojione-v1": frozenset({"keyboard"}),
    "fxemoji": frozenset({"keyboard", "sparkle", "tramcar", "heartblue"}),
}
"""By style: names of drawings that would be found, but show something else."""


@dataclasses.dataclass(frozen=True)
class Found:
    """Which emoji a name means, or why none.

    Attributes:
        emoji_id: id in builtin:emoji, or empty.
        rank: how it was found: `BY_TABLE`, `BY_CLDR` or `BY_CHARACTER`.
        reason: why there is no emoji, or empty.
    """

    emoji_id: str
    rank: int = BY_TABLE
    reason: str = ""


def slug(text: str) -> str:
    """Return the ASCII letters and digits of a name in lower case; names differ in what stands between."""
    plain = unicodedata.normalize("NFKD", text.replace("&", "and")).encode("ascii", "ignore").decode()
    return "".join(re.findall("[a-z0-9]+", plain.lower()))


class EmojiNames:
    """The names of all emoji, by which drawings are found.

    Args:
        facts: rows of builtin:emoji with `id`, `codepoints`, `year` and `name_en`; the newer emoji too,
            because a name that also means a newer emoji is not certain.
    """

    def __init__(self, facts: Iterable[Mapping[str, Any]]) -> None:
        self._years: dict[str, int] = {}
        self._ranks: dict[str, dict[str, int]] = defaultdict(dict)
        for row in facts:
            self._years[row["id"]] = row["year"]
            for form in _character_names(row["codepoints"]):
                self._ranks[slug(form)][row["id"]] = BY_CHARACTER
            for form in _cldr_forms(row["name_en"]):
                self._ranks[slug(form)][row["id"]] = BY_CLDR

    def find(self, style: str, name: str) -> Found:
        """Return the emoji that a drawing of this style and name shows."""
        if re.search(r"skin-tone|-tone\d", name):
            return Found("", reason="has a skin tone")
        if name in REFUSED.get(style, ()):
            return Found("", reason="shows something else")
        if name in NAMED.get(style, {}):
            return self._dated(NAMED[style][name], BY_TABLE)
        ranks = self._ranks.get(slug(name), {})
        if not ranks:
            return Found("", reason="is the name of no emoji")
        if len(ranks) > 1:
            return Found("", reason="is the name of several emoji")
        return self._dated(*next(iter(ranks.items())))

    def _dated(self, emoji_id: str, rank: int) -> Found:
        """Return the emoji, unless it is too new."""
        if emoji_id not in self._years:
            return Found("", reason="is the name of no emoji")
        if self._years[emoji_id] > NEWEST:
            return Found("", reason=f"is newer than {NEWEST}")
        return Found(emoji_id, rank)


def _cldr_forms(name: str | None) -> set[str]:
    """Return the forms in which drawings bear a CLDR name: flags say `flag for`, keycaps lose the colon."""
    if not name:
        return set()
    return {name, name.replace("flag: ", "flag for "), name.replace("flag: ", "flag for flag ")}


def _character_names(codepoints: Iterable[int]) -> list[str]:
    """Return the Unicode name of a single character, without its variation selector."""
    visible = [c for c in codepoints if c != 0xFE0F]
    name = unicodedata.name(chr(visible[0]), "") if len(visible) == 1 else ""
    return [name] if name else []
