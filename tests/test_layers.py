"""The rules of the house, as CONTRIBUTING has them: who may import whom, how long a cell may be, what is private."""
import ast, re
import pytest
from conftest import ROOT
from report.common import LAYERS, STAGES, code_cells, default_exp, layer, load_nb, notebooks, settings, source, wings

LIB = settings(ROOT)['lib_name']
NBS = notebooks(ROOT)
MODULES = {m: s for s, p in NBS.items() if (m := default_exp(load_nb(p)))}     # module: stem of its notebook
RANK = {m: (LAYERS.index(layer(s)), s) for m, s in MODULES.items()}
EXPORTED = re.compile(r'^#\| *(export|exports|exporti)\b', re.M)
# `python -m kinetics_dance.train` is what torchrun starts: it keeps its short name
ALIASES = {'train': 'study/03_train'}
# the table of models names classes of later notebooks as text; nothing is imported before a model is asked for
TABLES = {'models.registry': {'per_frame', 'cnn_lstm', 'video_transformer', 'models.order_blind', 'models.encoder_heads', 'models.sound',
                              'models.joints'}}
LONG, TOO_LONG = 25, 40         # lines of an exported cell
# What is still there from before these rules; the numbers may only fall
STILL_LONG, STILL_TOO_LONG, STILL_WIDE = 40, 0, 0


def package(module): return module.rpartition('.')[0]


def resolved(node, module):
    "Full names below the library that an import in `module` mentions: modules, or names of modules"
    if isinstance(node, ast.Import):
        return [a.name.removeprefix(LIB + '.') for a in node.names if a.name.startswith(LIB + '.')]
    if node.level:
        base = package(module).split('.') if package(module) else []
        base = base[:len(base) - node.level + 1]
        base = '.'.join([*base, *([node.module] if node.module else [])])
    elif node.module == LIB: base = ''
    elif (node.module or '').startswith(LIB + '.'): base = node.module.removeprefix(LIB + '.')
    else: return []
    return [base, *(f'{base}.{a.name}'.lstrip('.') for a in node.names)]


def imports_of(tree, module):
    "{module of the library: line} that some code imports, also inside functions and in strings that name modules"
    found = {}
    for n in ast.walk(tree):
        names = []
        if isinstance(n, (ast.Import, ast.ImportFrom)): names = resolved(n, module)
        elif isinstance(n, ast.Constant) and isinstance(n.value, str):
            m = re.fullmatch(rf'{LIB}\.([\w.]+)(:\w+)?', n.value.strip())
            names = [m[1], m[1].rpartition('.')[0]] if m else []
        for x in names:
            if x in RANK: found.setdefault(x, n.lineno)
    return found


def source_of(module): return (ROOT/LIB).joinpath(*module.split('.')).with_suffix('.py')


def test_every_wing_is_a_layer():
    assert set(wings(ROOT)) == set(LAYERS) - {STAGES}
    for w in wings(ROOT): assert (ROOT/'nbs'/w/'index.md').exists(), f'nbs/{w}/index.md: say what the wing is for'
    stray = [s for s in NBS if layer(s) not in LAYERS]
    assert not stray, stray


def test_no_wing_shadows_a_stage():
    "A folder named like a stage would hide its module without a word"
    assert not set(wings(ROOT)) & {m for m in MODULES if '.' not in m}


def test_a_module_is_its_notebooks_path():
    for m, s in MODULES.items():
        if ALIASES.get(m) == s: continue
        assert re.sub(r'(^|/)\d\d_', r'\1', s).replace('/', '.') == m, f'{s} exports to {m}'


@pytest.mark.parametrize('module', MODULES)
def test_no_import_points_up(module):
    up = {x: line for x, line in imports_of(ast.parse(source_of(module).read_text()), module).items()
          if x != module and RANK[x] > RANK[module] and x not in TABLES.get(module, ())}
    assert not up, f'{LIB}.{module} imports {up} (module: line), which stand above it: {" < ".join(LAYERS)}'


def test_the_check_sees_what_it_should():
    "Imports at any depth, relative or not, and strings"
    for code in ('from ..study import cli', 'from kinetics_dance.study.cli import main', 'import kinetics_dance.study.cli',
                 'def f():\n    from ..study.cli import main', "load('kinetics_dance.study.cli:main')"):
        assert 'study.cli' in imports_of(ast.parse(code), 'video.reading'), code
    assert not imports_of(ast.parse("'see kinetics_dance.study.cli for more'"), 'video.reading')


@pytest.mark.parametrize('stem', NBS)
def test_private_names_stay_at_home(stem):
    "A name that begins with _ is used in its own module only"
    own = default_exp(load_nb(NBS[stem])) or ''
    bad = []
    for c in code_cells(load_nb(NBS[stem])):
        try: tree = ast.parse(source(c))
        except SyntaxError: continue
        for n in ast.walk(tree):
            if isinstance(n, ast.ImportFrom) and any(x in RANK and x != own for x in resolved(n, own)):
                bad += [f'{n.module}.{a.name}' for a in n.names if re.match(r'_[a-zA-Z]', a.name)]
    assert not bad, f'{stem} imports private names: {bad}'


def exported_cells(stem):
    "(first definition, number of lines without directives) of the exported cells of a notebook"
    for c in code_cells(load_nb(NBS[stem])):
        if not EXPORTED.search(source(c)): continue
        lines = [l for l in source(c).splitlines() if not l.startswith('#|')]
        m = re.search(r'^(?:class|def|async def) +(\w+)', '\n'.join(lines), re.M)
        yield m[1] if m else lines[0][:30], len(lines)


def test_exported_cells_are_one_idea_each():
    "A cell of 25 lines or less; where a class cannot be, @patch grows it"
    long = sorted(((n, f'{s}: {name}') for s in NBS for name, n in exported_cells(s) if n > LONG), reverse=True)
    assert len(long) <= STILL_LONG, long
    assert sum(n > TOO_LONG for n, _ in long) <= STILL_TOO_LONG, [x for x in long if x[0] > TOO_LONG]


def wide_lines(module):
    "Numbers of lines over a hundred columns, without those that nbdev writes: the head and `__all__`"
    text = source_of(module).read_text()
    made = re.search(r"^__all__ = \[.*?\]$", text, re.M | re.S)
    first, last = (text[:at].count('\n') for at in (made.span() if made else (0, 0)))
    return [i for i, l in enumerate(text.splitlines()) if len(l) > 100 and i and not first <= i <= last]


def test_lines_fit_a_hundred_columns():
    wide = {m: w for m in MODULES if (w := wide_lines(m))}
    assert sum(map(len, wide.values())) <= STILL_WIDE, wide
