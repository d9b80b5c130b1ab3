"Extras: settings.ini is the one place; every extra that a text recommends exists, and what is absent is said in one line."
import ast, functools, importlib.metadata, os, re, runpy, subprocess, sys
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from conftest import ROOT
from report.common import code_cells, load_nb, notebooks, pins, settings, source
from report.environment import extras

CFG = settings(ROOT)
EXTRAS = extras(CFG)
LIB = ROOT/CFG['lib_path']
TEXTS = [p for folder in ('nbs', CFG['lib_path'], 'report', 'tests', 'rehearsal', 'recipes', 'examples', 'bench', 'studies', '.github') for p in (ROOT/folder).rglob('*')
         if p.suffix in ('.py', '.ipynb', '.md', '.yaml', '.yml') and p.name not in ('_modidx.py', 'test_extras.py')] + [ROOT/n for n in ('Makefile', 'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')]


def names(text): return {canonicalize_name(Requirement(r).name) for r in text.split()}


def recommended(text):
    "Extras that a text names: `kinetics_dance[x,y]`, `.[x]`, extra `x`"
    found = re.findall(r'kinetics[-_]dance\[([a-z][\w, -]*)\]|[\'" ]\.\[([a-z][\w,-]*)\]', text) + [('', e) for e in re.findall(r'\bextras? `(\w+)`', text)]
    return {e.strip() for a, b in found for e in (a or b).split(',')}


def test_every_recommended_extra_exists():
    assert recommended("pip install -e '.[cluster,track]'; kinetics-dance[dev]; the extra `export`") == {'cluster', 'track', 'dev', 'export'}
    seen = {e: p for p in TEXTS for e in recommended(p.read_text(encoding='utf-8'))}
    assert {'cluster', 'track'} <= set(seen) | set(EXTRAS)
    missing = {e: str(p.relative_to(ROOT)) for e, p in seen.items() if e not in EXTRAS}
    assert not missing, f'settings.ini has no such extra: {missing}'


def test_setup_reads_every_extra(monkeypatch):
    "setup.py gives what settings.ini says, also of an extra that is added"
    import setuptools
    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, 'setup', lambda **k: given.update(k))
    runpy.run_path(str(ROOT/'setup.py'))
    assert given['extras_require'] == EXTRAS and {'report', 'test', 'cluster', 'track', 'export', 'dev'} <= set(EXTRAS)
    assert given['install_requires'] == CFG['requirements'].split()


def calls():
    "(extra, its packages, where) of each call of `need_extra` in the library"
    for p in sorted(LIB.rglob('*.py')):
        for n in ast.walk(ast.parse(p.read_text())):
            if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'need_extra':
                first, *rest = (a.value if isinstance(a, ast.Constant) else None for a in n.args)
                yield first, [r for r in rest if r], str(p.relative_to(ROOT))


def test_the_extra_has_what_it_is_asked_for():
    found = list(calls())
    assert len(found) >= 6
    for extra, packages, where in found:
        assert extra in EXTRAS, where
        for package in packages: assert canonicalize_name(package) in names(' '.join(EXTRAS[extra])), f'{where}: [{extra}] does not bring {package}'


# --- imports

def imported(tree, top=False):
    "Names of the packages that some code imports; with `top`, only when it is imported itself"
    found, todo = set(), [tree]
    while todo:
        n = todo.pop()
        if isinstance(n, ast.Import): found |= {a.name.split('.')[0] for a in n.names}
        elif isinstance(n, ast.ImportFrom) and not n.level: found.add(n.module.split('.')[0])
        skipped = top and (isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Try))
                           or isinstance(n, ast.If) and ast.unparse(n.test) == 'TYPE_CHECKING')
        if not skipped: todo += ast.iter_child_nodes(n)
    return found - set(sys.stdlib_module_names) - {CFG['lib_name'], 'report', 'conftest', '__main__'}


@functools.cache
def owners():
    "{module: [packages that install it here]}"
    return importlib.metadata.packages_distributions()


def distributions(modules):
    "Packages that install these modules here"
    return {canonicalize_name(d) for m in modules for d in owners().get(m, [])[:1]}


def needed(requirements):
    "The packages that requirements name, and what those need"
    todo, found = [(canonicalize_name(r.name), frozenset(r.extras)) for r in map(Requirement, requirements.split())], set()
    while todo:
        package, more = todo.pop()
        if (package, more) in found: continue
        found.add((package, more))
        try: needs = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError: continue
        todo += [(canonicalize_name(r.name), frozenset(r.extras)) for r in map(Requirement, needs)
                 if not r.marker or any(r.marker.evaluate({'extra': e}) for e in ('', *more))]
    return {p for p, _ in found}


# modules that need the extra `train`; a command that comes to one of them names it in one line (`absent_package`)
OF_TRAINING = {f'kinetics_dance/{m}.py' for m in (
    'loading/dataloader', 'loading/fastai_blocks', 'loading/workers', 'training/checkpoints',
    'training/distributed', 'training/learner', 'training/runs', 'training/tracking')}


def test_the_library_imports_what_it_requires():
    "Nothing that only an extra brings is needed to import a module, and all that is imported anywhere can be installed by an extra"
    main, training = needed(CFG['requirements']), needed(' '.join([CFG['requirements'], *EXTRAS['train']]))
    all_of_it = needed(' '.join([CFG['requirements'], *EXTRAS['train'], *EXTRAS['hub'], *EXTRAS['cluster'], *EXTRAS['track'], *EXTRAS['export'], *EXTRAS['encoders']]))
    for p in sorted(LIB.rglob('*.py')):
        tree, where = ast.parse(p.read_text()), p.relative_to(ROOT)
        guarded = 'need_extra(' in ''.join(ast.unparse(n) for n in tree.body if isinstance(n, ast.Expr))
        needs = distributions(imported(tree, top=True))
        have = training if where.as_posix() in OF_TRAINING else main
        assert where.as_posix() not in OF_TRAINING or needs - main, f'{where} needs no extra any more'
        assert guarded or not (extra := needs - have), f'{where} needs {extra}'
        assert not (unknown := distributions(imported(tree)) - all_of_it), f'{where} imports {unknown}, which settings.ini does not name'


def test_no_requirement_is_idle():
    "Each package of the main requirements is imported by the library, or is known to be used by one that is"
    used = distributions(set().union(*(imported(ast.parse(p.read_text())) for p in LIB.rglob('*.py'))))
    behind = {'pyarrow': 'parquet files of pandas', 'fastcore': 'fastai'}
    assert not (idle := names(CFG['requirements']) - used - set(behind)), idle


def test_report_has_what_its_notebooks_import():
    "Every notebook is executed by `make report`: what its demonstrations import is in that environment's lock"
    have = {canonicalize_name(p) for p in pins(ROOT)}
    for stem, path in notebooks(ROOT).items():
        for c in code_cells(load_nb(path)):
            if re.match(r'#\| *(export|exports|exporti)\b', source(c)): continue     # the library's, which asks for its extras
            code = '\n'.join(l for l in source(c).splitlines() if not l.startswith('%'))
            missing = distributions(imported(ast.parse(code))) - have
            assert not missing, f'{stem} imports {missing}'
    for p in sorted((ROOT/'report').glob('*.py')): assert not (missing := distributions(imported(ast.parse(p.read_text()))) - have), f'{p.name} imports {missing}'


ABSENT = '''
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, *a, **k): return None if name.split('.')[0] in {packages!r} else find(name, *a, **k)
importlib.machinery.PathFinder.find_spec = find_spec
from kinetics_dance.core.base import StudyError
try:
{code}
except StudyError as e: print(e)
'''
CASES = dict(
    webdataset=('cluster', "from kinetics_dance.loading.shards import read_shard; list(read_shard('x.tar'))"),
    dask=('cluster', "from kinetics_dance.core.cluster import workers; workers('local:1', '.').__enter__()"),
    accelerate=('cluster', 'import kinetics_dance.training.distributed'),
    upath=('cluster', "from kinetics_dance.core.storage import as_path; as_path('s3://bucket/x')"),
    s3fs=('cluster', "from kinetics_dance.core.storage import as_path; as_path('s3://bucket/x')"),
    tensorboard=('track', "from kinetics_dance.training.tracking import make_tracker; make_tracker('tensorboard', 'x', 'm', 0, {})"),
    wandb=('track', "from kinetics_dance.training.tracking import make_tracker; make_tracker('wandb', 'x', 'm', 0, {})"),
    onnxscript=('export', "from kinetics_dance.deploy.export import export_model; export_model('m', 'onnx')"))


@pytest.mark.parametrize('package', CASES)
def test_without_the_extra(package, tmp_path):
    "One line, which names the extra and the command"
    extra, code = CASES[package]
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', ABSENT.format(packages={package}, code='    ' + code)], cwd=tmp_path, capture_output=True, text=True)
    lines = (p.stdout + p.stderr).splitlines()
    assert len(lines) == 1 and f"pip install 'kinetics_dance[{extra}]'" in lines[0], lines
    assert package == 'upath' or package in lines[0], lines


def test_the_rest_works_without_extras(tmp_path):
    "With what trains, all modules but the one of several processes are imported"
    only = sorted(needed(' '.join(EXTRAS['cluster'] + EXTRAS['track'] + EXTRAS['export'])) - needed(' '.join([CFG['requirements'], *EXTRAS['train']])))
    absent = {m for m, d in owners().items() if canonicalize_name(d[0]) in only and m not in ('kinetics_dance',)}
    assert {'dask', 'wandb', 'onnxruntime', 'webdataset'} <= absent
    modules = ['.'.join(p.relative_to(ROOT).with_suffix('').parts) for p in sorted(LIB.rglob('*.py')) if p.name[0] != '_' and p.parent.name + p.stem != 'trainingdistributed']
    code = '    import importlib\n    for m in sys.argv[1:]: importlib.import_module(m)'
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', ABSENT.format(packages=absent, code=code), *modules], cwd=tmp_path, capture_output=True, text=True)
    assert p.returncode == 0 and not p.stdout, (p.stdout + p.stderr)[-2000:]


# --- what everybody gets: predict and compare

TRAIN = ('fastai', 'yt_dlp', 'decord')
SMALL = '''
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, *a, **k): return None if name.split('.')[0] in {packages!r} else find(name, *a, **k)
importlib.machinery.PathFinder.find_spec = find_spec
{code}
'''


def without_training(code, tmp_path, *args):
    "Run Python without the packages of the extra `train`"
    (tmp_path/'small.py').write_text(SMALL.format(packages=set(TRAIN), code=code))
    with (tmp_path/'said').open('w+') as said:      # a file: a process that is left over may hold a pipe open
        p = subprocess.run([sys.executable, '-W', 'ignore', 'small.py', *map(str, args)], cwd=tmp_path, stdin=subprocess.DEVNULL,
                           stdout=said, stderr=said, timeout=200, env=os.environ | dict(PYTHONPATH=str(ROOT)))
        said.seek(0)
        p.stderr = said.read()
    return p


def test_the_small_core_predicts_and_compares(tmp_path):
    "Neither predicting nor comparing imports a package of the extra `train`, whatever function does it"
    from kinetics_dance.synthetic import dancers, uploads
    from test_inference import make_model
    make_model(tmp_path/'model')
    uploads.write_video(tmp_path/'v.mp4', dancers.render_clip('windmill', 0, 0)[::3], fps=5)
    cli = 'from kinetics_dance.study.cli import main\nmain(sys.argv[1:])'
    p = without_training(cli, tmp_path, 'predict', 'v.mp4', '--model-path', 'model', '--over-time', '--picture', 'p.png', '--save-video', 's.mp4')
    assert p.returncode == 0 and (tmp_path/'p.png').exists() and (tmp_path/'s.mp4').exists(), p.stderr
    modules = [f'kinetics_dance.{p.relative_to(LIB).with_suffix("").as_posix().replace("/", ".")}'
               for d in ('core', 'evaluation', 'deploy', 'models', 'clips', 'video') for p in sorted((LIB/d).glob('[a-z]*.py'))
               if p.stem not in ('perturbations', 'features')]      # of trained models, and of encoders: both read as training does
    p = without_training('import importlib\nfor m in sys.argv[1:]: importlib.import_module(m)', tmp_path, *modules, 'kinetics_dance.comparison')
    assert p.returncode == 0, p.stderr[-2000:]


def test_a_command_that_needs_the_extra(tmp_path):
    "One line, and what to install"
    p = without_training('from kinetics_dance.study.cli import main\nmain(sys.argv[1:])', tmp_path, 'train', '--study', 'demo')
    assert p.returncode == 2 and len(p.stderr.splitlines()) == 1 and 'is not installed: pip install' in p.stderr, p.stderr
