"""What the documentation promises exists: files, pictures, command lines, labels of the panel, and quoted messages."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from sprig.backend.errors import SprigError
from sprig.sprig_blender import cli
from sprig.sprig_blender.pinned_wheels import PINNED

CHECKOUT = Path(__file__).resolve().parents[1]
DOCS = CHECKOUT / "docs"
PAGES = [CHECKOUT / "README.md", *sorted(DOCS.glob("*.md"))]
BLENDER_LAYER = CHECKOUT / "sprig_blender"
GAP = "…"  # stands for names and numbers in a quotation


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8")))
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_pictures_are_used_and_small():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pictures = list((DOCS / "images").iterdir())
    assert len(pictures) <= 6
    for picture in pictures:
        assert f"images/{picture.name}" in text, picture.name
        assert picture.stat().st_size <= 150_000, picture.name


# ---- command lines


def command_lines(program: str) -> list[list[str]]:
    """The arguments of every line in a code block that calls the program; `…` and `[…]` are no command lines."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                call = re.match(rf"\s*(?:blender -c |torchrun .*?-m |python -m )?{re.escape(program)}\b", line)
                if call:
                    found.append(shlex.split(line[call.end() :], comments=True))
    return found


def test_command_lines_parse():
    lines = [line for line in command_lines("sprig") if line and not line[0].startswith(".")]
    assert {"rig", "inspect", "finetune", "evaluate"} <= {line[0] for line in lines}
    for line in lines:
        try:
            cli._parse(line)
        except SprigError as error:  # files that are not there are no fault of the page
            assert re.search("is no file|is no folder|There is nothing to measure", str(error)), (line, error)


@pytest.mark.parametrize("module", ["build_anny", "build_0ad", "pretrain_skeleton", "pretrain_skinning", "finetune"])
def test_training_commands_have_their_options(module, capsys, monkeypatch):
    lines = command_lines(f"sprig.training.{module}")
    assert lines
    main = importlib.import_module(f"sprig.training.{module}").main
    for line in lines:
        monkeypatch.setattr(sys, "argv", [module, *line, "--help"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0, line
        known = capsys.readouterr().out
        assert all(option in known for option in line if option.startswith("--")), line


def test_wheels_to_download_are_the_pinned_ones():
    text = (DOCS / "pipelines.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\b([\w-]+)==([\w.]+)", text)) == {(wheel.project, wheel.version) for wheel in PINNED}


# ---- the panel


def calls(tree: ast.AST, *names: str):
    """Calls of functions or methods of these names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in names:
            yield node


def keywords(call: ast.Call) -> dict[str, str]:
    return {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}


def labels_of_settings() -> set[str]:
    """What the panel and the preferences write beside their settings, as far as it is a fixed text."""
    properties = {}
    for file in ("properties.py", "preferences.py"):
        for node in ast.walk(ast.parse((BLENDER_LAYER / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Call):
                properties[node.target.id] = keywords(node.annotation)["name"]
    labels = set()
    for file in ("panel.py", "preferences.py"):
        for call in calls(ast.parse((BLENDER_LAYER / file).read_text(encoding="utf-8")), "prop"):
            labels.add(keywords(call).get("text") or properties[call.args[1].value])
    return labels


def texts(folder: Path) -> list[str]:
    """Every text in the modules of a folder; what is filled in is a gap."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_panel_page_has_every_setting_and_no_other():
    page = (DOCS / "panel.md").read_text(encoding="utf-8")
    described = set(re.findall(r"\*\*(.+?)\*\*", page))
    assert labels_of_settings() <= described
    assert len(labels_of_settings()) > 25
    assert described <= set(texts(BLENDER_LAYER))


def test_messages_are_quoted_as_they_are():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quotations = re.findall(r"^> (.+)$", page, flags=re.MULTILINE)
    known = [*texts(BLENDER_LAYER), *texts(CHECKOUT / "backend")]
    assert len(quotations) > 50
    for quotation in quotations:
        pattern = re.compile(".*".join(re.escape(part) for part in quotation.split(GAP)), flags=re.DOTALL)
        assert any(pattern.search(text) for text in known), quotation
