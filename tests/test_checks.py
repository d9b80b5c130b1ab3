"Checks of the tree itself: library, notebooks, README, studies and pins say the same thing. Nothing here changes a file."
import ast, re, shutil, subprocess, sys
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from conftest import ROOT
from report.common import code_cells, exported, load_nb, notebooks, settings, source
from report.readme import readme
from report.study import load_study

CFG = settings(ROOT)
LIB = CFG['lib_name']
NBS = notebooks(ROOT)
each = pytest.mark.parametrize('stem', NBS)


def default_exp(stem): return next((m[1] for c in code_cells(load_nb(NBS[stem])) if (m := re.search(r'^#\| *default_exp +(\S+)', source(c), re.M))), None)


def imports(src):
    "Modules of the library that some code imports"
    names = set()
    for n in ast.walk(ast.parse(src)):
        if isinstance(n, ast.Import): names |= {a.name for a in n.names}
        elif isinstance(n, ast.ImportFrom):
            base = f"{LIB}.{n.module or ''}".rstrip('.') if n.level else n.module or ''
            names |= {base, *(f'{base}.{a.name}' for a in n.names)} if base == LIB else {base}
    return {n.split('.')[1] for n in names if n.startswith(LIB + '.')}


def test_notebook_names():
    odd = [p.name for p in (ROOT/'nbs').glob('*.ipynb') if p.stem not in NBS]
    assert not odd, f'not NN_name.ipynb, NNx_name.ipynb or index.ipynb: {odd}'


def test_library_is_exported():
    want = exported(ROOT)
    have = {p.name: p.read_bytes() for p in (ROOT/LIB).glob('*.py')}
    diff = [n for n in sorted({**want, **have}) if want.get(n) != have.get(n)]
    assert not diff, f'`make export` would change {diff}'


def test_notebooks_are_clean(tmp_path):
    shutil.copy(ROOT/'settings.ini', tmp_path)
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=lambda d, names: [n for n in names if not n.endswith('.ipynb')])
    subprocess.run([sys.executable, '-c', 'from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()'], cwd=tmp_path, check=True)
    dirty = [s for s, p in NBS.items() if (tmp_path/'nbs'/p.name).read_bytes() != p.read_bytes()]
    assert not dirty, f'`make clean-notebooks` would change {dirty}'


@each
def test_no_outputs(stem):
    assert not [c for c in code_cells(load_nb(NBS[stem]), injected=True) if c['outputs'] or c['execution_count'] or 'injected-parameters' in c['metadata'].get('tags', [])]


@each
def test_no_paths_of_a_machine(stem):
    bad = re.findall(r'[^\s"]*(?:/work/|/root/|/home/|/Users/)[^\s"]*', NBS[stem].read_text())
    assert not bad, bad


@each
def test_imports_stand_alone(stem):
    "The site runs every cell that imports, by itself: one that does anything else would fail or run there"
    for c in code_cells(load_nb(NBS[stem])):
        if re.search(r'^#\| *(export|exports|exporti)\b|^%', source(c), re.M): continue
        body = ast.parse(source(c))
        if not any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(body)): continue
        other = [ast.unparse(n) for n in body.body if not isinstance(n, (ast.Import, ast.ImportFrom))]
        assert not other or re.search(r'^#\| *hide\b', source(c), re.M), f'{other[0]!r} shares a cell with imports'


@each
def test_imports_point_backwards(stem):
    order = {default_exp(s): i for i, s in enumerate(NBS)}
    mod = default_exp(stem)
    if mod is None: return
    forward = {m for m in imports((ROOT/LIB/f'{mod}.py').read_text()) if m in order and order[m] > order[mod]}
    assert not forward, f'{mod} imports {forward}, which come after it'


@pytest.mark.parametrize('mod, banned', [('data', ['torch', 'fastai']), ('comparison', ['torch', 'fastai', f'{LIB}.per_frame', f'{LIB}.cnn_lstm', f'{LIB}.video_transformer', f'{LIB}.training']),
                                         ('inference', ['fastai', f'{LIB}.training'])])
def test_what_a_module_must_not_load(mod, banned):
    if not (ROOT/LIB/f'{mod}.py').exists(): pytest.skip(f'there is no {mod} yet')
    code = f'import {LIB}.{mod}, sys; print(*[m for m in {banned!r} if m in sys.modules])'
    p = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    assert not p.stdout.split(), f'{mod} loads {p.stdout.split()}'


def test_readme():
    assert (ROOT/'README.md').read_text() == readme(ROOT), '`make readme` would change README.md'


@pytest.mark.parametrize('path', sorted((ROOT/'studies').glob('*.yaml')), ids=lambda p: p.stem)
def test_studies(path):
    study, params, decl, _ = load_study(path, ROOT)
    assert study == path.stem


def test_same_parameter_same_default():
    "A parameter that several notebooks declare has one default: else a study without it would disagree with itself"
    from report.common import declared
    seen = {}
    for s, p in NBS.items():
        for k, v in declared(load_nb(p)).items():
            assert seen.setdefault(k, (v, s))[0] == v, f'{k} is {v!r} in {s} and {seen[k][0]!r} in {seen[k][1]}'


def test_pins():
    pins = dict(re.findall(r'^([\w.-]+)==(\S+)$', (ROOT/'constraints.txt').read_text(), re.M))
    pins = {canonicalize_name(k): v for k, v in pins.items()}
    for text in (CFG['requirements'] + ' ' + CFG['dev_requirements']).split():
        r = Requirement(text)
        assert canonicalize_name(r.name) in pins, f'{r.name} is not pinned'
        assert r.specifier.contains(pins[canonicalize_name(r.name)]), f'{text} excludes the pin {pins[canonicalize_name(r.name)]}'
    lines = [l for l in (ROOT/'constraints.txt').read_text().splitlines() if not re.fullmatch(r'#.*|[\w.-]+==[\w.+!]+', l)]
    assert not lines, lines


def test_makefile_lists_its_targets():
    text = subprocess.run(['make', '-s'], cwd=ROOT, capture_output=True, text=True).stdout
    for t in ('report', 'test', 'site', 'export', 'clean'): assert re.search(rf'^  {t} +\S', text, re.M), t


def test_bad_study_name_deletes_nothing():
    p = subprocess.run(['make', '-s', '-n', 'clean', 'STUDY=demo'], cwd=ROOT, capture_output=True, text=True)
    assert 'rm -rf "runs/demo" _site' in p.stdout
    assert subprocess.run(['make', '-s', 'clean', 'STUDY=../x'], cwd=ROOT, capture_output=True).returncode
