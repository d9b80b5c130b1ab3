"The package from outside: built, installed into an empty environment, used by a notebook that knows nothing of this project; its names and types."
import ast, json, re, shutil, subprocess, sys, sysconfig, venv, zipfile
from pathlib import Path
import pytest
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # when it is run to write the names
from conftest import ROOT
from report.common import code_cells, load_nb, settings, source

LIB = ROOT/'kinetics_dance'
NAMES = ROOT/'tests'/'public_names.json'


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a copy, so that nothing is left in the tree, and without the network"
    tree, out = tmp_path_factory.mktemp('tree'), tmp_path_factory.mktemp('wheel')
    for f in ('settings.ini', 'setup.py', 'README.md', 'LICENSE'): shutil.copy(ROOT/f, tree)
    shutil.copytree(LIB, tree/LIB.name, ignore=shutil.ignore_patterns('__pycache__'))
    p = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--disable-pip-version-check', '-w', out, tree], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def outside(wheel, tmp_path_factory):
    """Python of an empty environment with the wheel in it. The packages that the wheel needs take five gigabytes, so they are not installed once more: a
    .pth file shows those of the environment that runs the tests. Python reads no .pth files in a folder that comes from one,
    so the editable install of this project, which is such a file, is not among them: `kinetics_dance` can only come from the wheel."""
    folder = tmp_path_factory.mktemp('outside')
    venv.create(folder/'env', with_pip=False)
    python = folder/'env'/'bin'/'python'
    run = lambda *a: subprocess.run([str(x) for x in a], check=True, capture_output=True, text=True, cwd=folder)
    site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').stdout.strip())
    assert subprocess.run([python, '-c', 'import numpy'], cwd=folder, capture_output=True).returncode, 'it is empty'
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', '--disable-pip-version-check', wheel)
    (site/'packages.pth').write_text(sysconfig.get_path('purelib') + '\n')
    where = run(python, '-c', 'import kinetics_dance; print(kinetics_dance.__file__)').stdout
    assert str(folder) in where, where
    return python


def test_what_the_wheel_holds(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert 'kinetics_dance/py.typed' in names and {p.relative_to(ROOT).as_posix() for p in LIB.rglob('*.py')} <= set(names)
    assert not [n for n in names if n.split('/')[0] not in ('kinetics_dance', re.sub(r'-py3.*', '', wheel.name) + '.dist-info')]
    head = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith('entry_points.txt'))).decode()
    assert 'kinetics-dance = kinetics_dance.study.cli:main' in head.replace('kinetics-dance=', 'kinetics-dance = ')


def test_a_notebook_from_outside(outside, tmp_path):
    "Own folder of videos → loaders → models → comparison, in under thirty lines; then a prediction and the command"
    from kinetics_dance.synthetic import dancers, uploads
    for member, label in enumerate(dancers.PAIRS['windmill'][:2]):
        (tmp_path/'videos'/label).mkdir(parents=True)
        for i in range(10): uploads.write_video(tmp_path/'videos'/label/f'{i}.mp4', dancers.render_clip('windmill', member, i)[::3], fps=5)
    nb = load_nb(shutil.copy(ROOT/'examples'/'own_videos.ipynb', tmp_path))
    lines = [l for c in code_cells(nb) for l in source(c).splitlines() if l.strip()]
    assert len(lines) < 30, len(lines)
    (tmp_path/'run.py').write_text("import nbformat, nbclient\nnb = nbformat.read('own_videos.ipynb', 4)\nnbclient.NotebookClient(nb, timeout=300).execute()\n"
                                   "nbformat.write(nb, 'done.ipynb')\n")
    p = subprocess.run([outside, 'run.py'], cwd=tmp_path, capture_output=True, text=True, timeout=400, env={'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path), 'OMP_NUM_THREADS': '1'})
    assert p.returncode == 0, p.stderr[-3000:]
    last = code_cells(json.loads((tmp_path/'done.ipynb').read_text()))[-1]
    assert 'accuracy' in str(last['outputs']) and 'cnn_lstm' in str(last['outputs'])
    p = subprocess.run([outside.parent/'kinetics-dance', 'demo-video', '--out', 'd.mp4', '--json'], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert p.returncode == 0 and json.loads(p.stdout)['dances'], p.stderr
    p = subprocess.run([outside.parent/'kinetics-dance', 'report'], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert p.returncode == 2 and len(p.stderr.splitlines()) == 1 and 'needs the project itself' in p.stderr


def test_a_release_carries_a_model(tmp_path):
    "One that can be unpacked and used; the same archive for the same model; nothing that is no model"
    from report.common import UserError
    from report.release import pack
    from test_inference import make_model
    folder = make_model(tmp_path/'runs/demo/models/cnn_lstm/seed0')
    first = pack(folder, tmp_path/'m.zip').read_bytes()
    assert pack(folder, tmp_path/'m.zip').read_bytes() == first
    zipfile.ZipFile(tmp_path/'m.zip').extractall(tmp_path)
    assert {p.name for p in (tmp_path/'m').iterdir()} == {'config.json', 'model.safetensors'}
    (folder/'model.safetensors').write_bytes(b'no')
    with pytest.raises(UserError, match='not the weights'): pack(folder, tmp_path/'n.zip')


# ---- names

def public(path):
    "{name: parameters, or None} of a module's `__all__`, without importing it"
    tree = ast.parse(path.read_text(encoding='utf-8'))
    names = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'), None)
    found = {n: None for n in names or ()}
    for n in tree.body:
        if getattr(n, 'name', None) not in found: continue
        f = n if isinstance(n, ast.FunctionDef) else next((m for m in getattr(n, 'body', ()) if getattr(m, 'name', '') == '__init__'), None)
        if f: found[n.name] = [a.arg for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs) if a.arg not in ('self', 'cls')]
    return names, found


def modules():
    "{name below the library: path} of its public modules"
    return {'.'.join(p.relative_to(LIB).with_suffix('').parts): p for p in sorted(LIB.rglob('*.py')) if p.name[0] != '_'}


def surface(): return {m: public(p)[1] for m, p in modules().items()}


def test_every_module_lists_its_names():
    for m, p in modules().items(): assert public(p)[0], f'{m} has no __all__'


def test_every_module_can_be_imported_from_outside(outside, tmp_path):
    "All sub-packages are in the wheel, and no module needs the project beside it"
    code = 'import importlib, sys\nfor m in sys.argv[1:]: importlib.import_module(f"kinetics_dance.{m}")\nprint(len(sys.argv) - 1)'
    p = subprocess.run([outside, '-W', 'ignore', '-c', code, *modules()], cwd=tmp_path, capture_output=True, text=True)
    assert p.returncode == 0 and int(p.stdout) == len(modules()) > 50, p.stderr[-2000:]


def test_names_stay():
    """Of one version, names and parameters may be added and none may go. `python tests/test_wheel.py` writes the list anew: after the version in
    settings.ini was raised, or to add what is new."""
    known = json.loads(NAMES.read_text())
    if known['version'].split('.')[:2] != settings(ROOT)['version'].split('.')[:2]:
        pytest.fail(f"the names are those of version {known['version']}: python tests/test_wheel.py")
    now, gone = surface(), []
    for module, names in known['names'].items():
        for name, parameters in names.items():
            if name not in now.get(module, {}): gone.append(f'{module}.{name}')
            else: gone += [f'{module}.{name}({a})' for a in parameters or () if a not in (now[module][name] or ())]
    assert not gone, f'these names are gone: {gone}'


def test_types(tmp_path):
    "mypy at basic level: what is annotated must be right (see mypy.ini)"
    pytest.importorskip('mypy')
    p = subprocess.run([sys.executable, '-m', 'mypy', '--no-error-summary', '--cache-dir', str(ROOT/'.mypy_cache')], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout + p.stderr
    (tmp_path/'user.py').write_text("from kinetics_dance.inference import Predictor\nx: int = Predictor.load('m').predict('v.mp4').top(5)\n")
    p = subprocess.run([sys.executable, '-m', 'mypy', '--cache-dir', str(ROOT/'.mypy_cache'), tmp_path/'user.py'], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 1 and 'list[Any]' in p.stdout, 'a user of the library sees its types'


if __name__ == '__main__':
    NAMES.write_text(json.dumps(dict(version=settings(ROOT)['version'], names=surface()), indent=1) + '\n')
    print(f'{NAMES.relative_to(ROOT)}: {sum(map(len, surface().values()))} names')
