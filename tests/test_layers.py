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
# `python -m kinetics_dance.train` is an alias, so that old command lines of torchrun go on working
ALIASES = {'train': 'study.launch'}
# Cells that stay whole: name of the notebook and what the cell defines, with the reason in CONTRIBUTING
WHOLE = 25, 40


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
    for m, s in MODULES.items(): assert re.sub(r'(^|/)\d\d_', r'\1', s).replace('/', '.') == m, f'{s} exports to {m}'


@pytest.mark.parametrize('module', MODULES)
def test_no_import_points_up(module):
    up = {x: line for x, line in imports_of(ast.parse(source_of(module).read_text()), module).items()
          if x != module and RANK[x] > RANK[module]}
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


@pytest.mark.parametrize('stem', NBS)
def test_no_exported_cell_over_forty_lines(stem):
    long = {name: n for name, n in exported_cells(stem) if n > WHOLE[1]}
    assert not long, f'{stem}: {long}: one idea a cell; grow a class with @patch'


def test_few_exported_cells_over_twenty_five_lines():
    long = [f'{s}: {name} ({n})' for s in NBS for name, n in exported_cells(s) if n > WHOLE[0]]
    assert len(long) <= 30, long


@pytest.mark.parametrize('module', MODULES)
def test_no_line_over_a_hundred_columns(module):
    long = [i for i, l in enumerate(source_of(module).read_text().splitlines(), 1) if len(l) > 100]
    assert not long, f'{LIB}/{source_of(module).name}: lines {long}'
