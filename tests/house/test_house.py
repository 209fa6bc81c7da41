"The house keeps its shape: floors, budgets, one source, one set of versions"

import ast
import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[2]
FLOORS = {
    name: i
    for i, names in enumerate(
        (
            ("core",),
            ("numeric",),
            ("data",),
            ("nets",),
            ("methods",),
            ("study",),
            ("show",),
            ("labs",),
            ("cli", "export"),
        )
    )
    for name in names
}
PUBLIC, STATEMENTS = 20, 30  # public names a module, statements a function
CELL = 110  # lines of an exported cell
BANNED = set("said told found kept whose chance heard luck gone going bout purchase".split())
COMMON = "common"  # the chapter of methods that all chapters may use
modules = [
    p
    for p in sorted((root / "deffi_lab").rglob("*.py"))
    if p.name not in ("__init__.py", "_modidx.py")
]
notebooks = [
    p for p in sorted((root / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts
]
scripts = [p for name in ("bench", "tests", "tools") for p in sorted((root / name).rglob("*.py"))]
named = {"ids": lambda p: str(p.relative_to(root))}


def imports(path: Path) -> set[str]:
    "Absolute names of what a module imports, relative imports resolved"
    package = list(path.relative_to(root).with_suffix("").parts[:-1])
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            out |= {f"{stem}.{a.name}" for a in node.names} | {stem}
    return out


def house(names: set[str]) -> set[str]:
    return {n.split(".", 1)[1] for n in names if n.startswith("deffi_lab.")}


@pytest.mark.parametrize("path", modules, **named)
def test_imports_go_down(path):
    me = path.relative_to(root / "deffi_lab").with_suffix("").parts
    for name in house(imports(path)):
        floor, *rest = name.split(".")
        if floor not in FLOORS:
            continue
        assert FLOORS[floor] <= FLOORS[me[0]], f"{me} imports {name}, which lies on a higher floor"
        if me[0] == floor == "methods" and rest:
            assert rest[0] in (me[1], COMMON), f"{me} imports {name}: another chapter"
        if me[0] == floor == "labs" and len(rest) > 1:
            assert rest[:2] == list(me[1:3]), f"{me} imports {name}: labs never import each other"


def chapters(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(("_", "."))}


def test_a_chapter_has_one_name_everywhere():
    """The same word finds the methods, the notebooks, the labs and the tests of a chapter"""
    names = chapters(root / "deffi_lab/methods") - {COMMON}
    assert names == chapters(root / "nbs/methods") - {COMMON}
    assert names == chapters(root / "deffi_lab/labs") == chapters(root / "nbs/labs")
    assert names <= chapters(root / "tests")
    lessons = {p.stem.split("_")[1] for p in (root / "nbs/lessons").glob("*.ipynb")}
    assert lessons <= names


@pytest.mark.parametrize("path", [m for m in modules if "methods" in m.parts], **named)
def test_methods_know_no_screen(path):
    banned = {"matplotlib", "plotly", "ipywidgets", "anywidget", "IPython", "tqdm", "threading"}
    assert not {n.split(".")[0] for n in imports(path)} & banned


def statements(function: ast.AST) -> int:
    """Statements of a function and of those inside it, docstrings left out"""
    inner = [n for n in ast.walk(function) if isinstance(n, ast.stmt) and n is not function]
    return sum(not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)) for n in inner)


def definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """The public functions and classes of a module, patched methods included"""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [n for n in tree.body if isinstance(n, kinds) and n.name[0] != "_"]


def patched(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a function belongs to a class that an earlier cell defined"""
    return any(isinstance(d, ast.Name) and d.id == "patch" for d in node.decorator_list)


@pytest.mark.parametrize("path", modules, **named)
def test_module_budget(path):
    tree = ast.parse(path.read_text())
    public = [n for n in definitions(tree) if not patched(n)]
    assert len(public) <= PUBLIC, f"{len(public)} public names: split by concept"
    functions = [
        n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = {n.name: statements(n) for n in functions if statements(n) > STATEMENTS}
    assert not long, f"more than {STATEMENTS} statements: {long}"


@pytest.mark.parametrize("path", modules, **named)
def test_public_names_are_documented(path):
    tree = ast.parse(path.read_text())
    public = definitions(tree)
    assert not [n.name for n in public if not ast.get_docstring(n)]
    functions = [n for n in public if isinstance(n, ast.FunctionDef)]
    assert not [n.name for n in functions if n.returns is None], (
        "a public function names what it returns"
    )


@pytest.mark.parametrize("path", notebooks, **named)
def test_notebook_budget(path):
    nb = json.loads(path.read_text())
    sources = ["".join(c["source"]) for c in nb["cells"]]
    assert path.stat().st_size <= 300 * 1024
    assert len(nb["cells"]) <= 70
    assert sum(bool(re.search(r"^#\|\s*export", s, re.M)) for s in sources) <= 20
    assert "widgets" not in nb["metadata"]
    outputs = [o for c in nb["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert [o for o in outputs if "image/png" in o.get("data", {})], (
        "a notebook shows at least one picture"
    )


@pytest.mark.parametrize("path", notebooks, **named)
def test_exported_cells_are_short(path):
    """One behaviour a cell: a longer class is written with `@patch`"""
    sources = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"]]
    lengths = [len(s.splitlines()) for s in sources if re.search(r"^#\|\s*export", s, re.M)]
    assert not [n for n in lengths if n > CELL], f"an exported cell has more than {CELL} lines"


def identifiers(tree: ast.AST) -> set[str]:
    """All names that a module defines or uses"""
    out = set()
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                out.add(name)
    return out


def code(path: Path) -> str:
    """What a module or the code cells of a notebook hold, cells of commands left out"""
    if path.suffix == ".py":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return "\n".join(s for s in sources if not re.search(r"^\s*[%!]", s, re.M))


@pytest.mark.parametrize("path", modules + notebooks + scripts, **named)
def test_names_are_the_fields_words(path):
    """prediction, metrics, result, owner, rng: a reader need not learn words of this house"""
    names = identifiers(ast.parse(code(path)))
    assert not {n for n in names if n.strip("_").lower() in BANNED}


def test_every_module_has_one_notebook():
    targets = [
        m.group(1).replace(".", "/") + ".py"
        for p in notebooks
        for c in json.loads(p.read_text())["cells"]
        if (m := re.search(r"^#\|\s*default_exp\s+(\S+)", "".join(c["source"]), re.M))
    ]
    assert sorted(targets) == [str(m.relative_to(root / "deffi_lab")) for m in modules]


def test_the_sidebar_is_the_reading_order():
    """Each notebook stands once in nbs/sidebar.yml"""
    listed = re.findall(r"^\s*- (\S+\.ipynb)$", (root / "nbs/sidebar.yml").read_text(), re.M)
    assert sorted(listed) == sorted(str(p.relative_to(root / "nbs")) for p in notebooks)


def settings() -> configparser.SectionProxy:
    cfg = configparser.ConfigParser(delimiters=["="], interpolation=None)
    cfg.read(root / "settings.ini")
    return cfg["DEFAULT"]


def pins() -> dict[str, str]:
    lines = (root / "constraints.txt").read_text().split()
    return dict(line.split("==") for line in lines)


def test_versions_match_everywhere():
    c = settings()
    assert f'"{c["version"]}"' in (root / "deffi_lab/__init__.py").read_text()
    assert c["version"] in (root / "CHANGELOG.md").read_text()
    runtime = {re.split(r"[<>=]", r)[0] for r in c["requirements"].split()}
    assert runtime <= set(pins()), (
        "each runtime requirement has a tested version in constraints.txt"
    )
    binder = (root / "binder/environment.yml").read_text()
    for name in runtime | {"voila"}:
        listed = "pytorch-cpu" if name == "torch" else name
        assert re.search(rf"- {re.escape(listed)}=={re.escape(pins()[name])}$", binder, re.M), name


def test_torch_is_free_for_users_and_pinned_for_make():
    assert "torch>=" in settings()["requirements"] and pins()["torch"].count(".") == 2


def test_import_needs_no_development_tool_and_no_widget():
    code = (
        "import sys, deffi_lab.core.step, deffi_lab.core.run, deffi_lab.core.store, "
        "deffi_lab.data.images, deffi_lab.nets.vae,"
        "deffi_lab.methods.selection.boosting; "
        "bad = {'nbdev', 'fastcore', 'execnb', 'ipywidgets', 'anywidget', 'plotly', "
        "'matplotlib', 'umap'}"
        " & {m.split('.')[0] for m in sys.modules}; print(sorted(bad))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[]"


def test_nothing_is_loaded_from_a_network():
    for p in (root / "deffi_lab/static").iterdir():
        text = p.read_text()
        assert not re.search(r"(import|src|href)\s*[=(]?\s*['\"]https?://", text), p.name


def test_nothing_is_unpickled():
    for p in modules:
        text = p.read_text()
        assert not re.search(r"pickle\.loads?\(|weights_only=False|allow_pickle=True", text), p.name
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call
