"Toy nbdev projects: the shape of the real one, with notebooks that run in a second."
import fcntl, json, os, subprocess, sys, textwrap
from pathlib import Path
import pytest
import preloaded

ROOT = Path(__file__).resolve().parent.parent
# what tests start says how far it is only where a test asks for it: on a busy machine everything takes long
os.environ['KINETICS_DANCE_PROGRESS_SECONDS'] = '86400'
# no test asks the network: the runtime of the page Try it yourself comes from the cache or not at all
os.environ.setdefault('KINETICS_DANCE_ONNXRUNTIME_WEB', 'no')
AT_START = preloaded.at_start(os.environ)
preloaded.spawn()      # workers of pools: forked from a process that has pandas and PyAV already


def pytest_configure(config):
    config.addinivalue_line('markers', 'new_processes: what this test starts, starts from nothing')


# Files whose tests share what takes long to make belong to one worker of pytest-xdist; so do those
# that need the smoke study. These come first, then single tests, the long ones before the short.
SHARED = 'cluster', 'distributed', 'hostile_labels', 'shards', 'site', 'training', 'wheel'
TOGETHER = {f'test_{f}': f for f in SHARED}
TOGETHER |= dict(test_study='study', test_browser='study')
FIRST, LAST = ('test_notebooks', 'test_faults', 'test_frames'), ('test_layers', 'test_checks')


def pytest_collection_modifyitems(items):
    items.sort(key=lambda i: (i.path.stem not in FIRST) + (i.path.stem in LAST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return TOGETHER.get(Path(nodeid.split('::')[0]).stem, nodeid)
    return Groups(config, log)


def environment_as_at_start():
    "A local cluster of dask leaves a PYTHONHASHSEED behind, and nothing would be preloaded after it"
    for k in preloaded.at_start(os.environ).keys() - AT_START: del os.environ[k]
    os.environ.update(AT_START)


@pytest.fixture(autouse=True)
def how_processes_start(request, monkeypatch):
    environment_as_at_start()
    if request.node.get_closest_marker('new_processes'): monkeypatch.setattr(preloaded, 'on', False)



def make_nb(path, *cells):
    "Write a notebook: a cell is text (code), `('md', text)` or `('parameters', text)`"
    out = []
    for i, c in enumerate(cells):
        kind, src = c if isinstance(c, tuple) else ('code', c)
        src = textwrap.dedent(src).strip()
        cell = dict(cell_type='markdown' if kind == 'md' else 'code', id=f'c{i}', metadata={'tags': ['parameters']} if kind == 'parameters' else {},
                    source=src.splitlines(True))
        if kind != 'md': cell.update(execution_count=None, outputs=[])
        out.append(cell)
    nb = dict(cells=out, metadata=dict(kernelspec=dict(display_name='python3', language='python', name='python3')), nbformat=4, nbformat_minor=5)
    Path(path).write_text(json.dumps(nb, indent=1))


LOG = "open(f'../runs/{study}/log', 'a').write('%s\\n')"     # who ran, in which order


class Toy:
    "A toy project in a folder, and how to run it"
    def __init__(self, root):
        self.root, self.folder = root, root/'runs/toy'
        if root.exists(): return
        (root/'nbs').mkdir(parents=True); (root/'studies').mkdir(); (root/'toy').mkdir()
        ini = (ROOT/'settings.ini').read_text().replace('kinetics_dance', 'toy')
        (root/'settings.ini').write_text(ini)
        (root/'toy/__init__.py').write_text('')
        (root/'locks').mkdir()
        (root/'locks/report.txt').write_text('papermill==2.7.0\n')
        self.study('study: toy\nn: 3\n')

    def nb(self, name, *cells): make_nb(self.root/'nbs'/f'{name}.ipynb', *cells)
    def study(self, text): (self.root/'studies/toy.yaml').write_text(text)
    def ran(self):
        "What ran since the last call, in the order of starting"
        log = self.folder/'log'
        res = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return res

    def command(self, *args, study='studies/toy.yaml'):
        return [sys.executable, '-m', 'report.run', str(self.root/study), '--root', str(self.root), *args]
    def run(self, *args, rc=0, **kw):
        p = preloaded.run(self.command(*args, **kw), cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert p.returncode == rc, p.stdout + p.stderr
        return p
    def popen(self, *args):
        # a shell's background job ignores Ctrl-C and hands that down, and then the tests could not press it
        return preloaded.Popen(self.command(*args), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True, interrupts=True)


@pytest.fixture
def toy(tmp_path): return fill(Toy(tmp_path/'p'))


def fill(t):
    "data → two models → comparison, with a library module that the second one imports"
    t.nb('00_data', ('md', '# Data\n\n> Numbers.'), '#| default_exp data', ('parameters', "study = 'demo'\nn = 2  # how many\nscale = 1.5"),
         "#| export\ndef double(x): return 2*x", "#| study\n" + LOG % '00',
         "import pathlib", "#| study\npathlib.Path(f'../runs/{study}/clips.csv').write_text('\\n'.join(str(double(i)*scale) for i in range(n)))")
    for num, name, extra in (('02', 'a', ''), ('03', 'b', 'from toy.parts.helper import shift')):
        t.nb(f'{num}_{name}', ('md', f'# Model {name}\n\n> Adds.'), *([extra] if extra else []),
             ('parameters', "study = 'demo'\nepochs = 1\nlr = None" if num == '02' else "study = 'demo'\nepochs = 1"),
             ('md', '## Training'), "#| study\n" + LOG % num,
             "import time, os\nfrom pathlib import Path", "#| study\nrun = Path(f'../runs/{study}')\nd = run/'predictions/%s'\nd.mkdir(parents=True, exist_ok=True)" % name,
             "#| study\nx = sum(float(l) for l in (run/'clips.csv').read_text().split()) + epochs%s\n(d/'seed0.parquet').write_text(str(x))" % (' + shift' if extra else ''))
    (t.root/'nbs/parts').mkdir()
    (t.root/'nbs/parts/index.md').write_text('# Parts\n\n> What the stages share.\n\nKnows nothing of data.\n')
    t.nb('parts/00_helper', ('md', '# Helper\n\n> Shifts.'), '#| default_exp parts.helper', '#| export\nshift = 10', "assert shift > 0")
    t.nb('05_comparison', ('md', '# Comparison\n\n> Compares.'), ('parameters', "study = 'demo'"), "#| study\n" + LOG % '05',
         "import json\nfrom pathlib import Path", "#| study\nrun = Path(f'../runs/{study}')\n"
         "rep = {'study': study, 'seconds': {}, 'models': {p.parent.name: p.read_text() for p in sorted(run.glob('predictions/*/*'))}}\n"
         "(run/'report.json').write_text(json.dumps(rep, indent=1))")
    t.nb('index', ('md', '# Toy\n\n> A home page.'), ('parameters', "study = 'demo'"), LOG % 'index')
    return t


# the notebooks of the wings have no part in a study; their cells have a test of their own
STUDY_NOTEBOOKS = sorted(p.stem for p in (ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))


def things(folder):
    "What lies in a folder, without the mark that says whose it is"
    return [p for p in folder.iterdir() if p.name != '.kinetics_dance']


def once(tmp_path_factory, worker_id, name, make):
    "A folder that the first worker which needs it makes, while the others wait"
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == 'master' else base.parent
    with (base/f'{name}.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base/f'{name}.done').exists():
            make(base/name)
            (base/f'{name}.done').touch()
    return base/name


def command(*args, timeout=900):
    p = subprocess.run([sys.executable, '-m', *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert p.returncode == 0, p.stdout + p.stderr


@pytest.fixture(scope='session')
def smoke(tmp_path_factory, worker_id):
    "Folder of the smoke study: run once for all workers, so a test must not change it"
    return once(tmp_path_factory, worker_id, 'smoke', lambda runs: command('report.run', ROOT/'studies/smoke.yaml', '--runs', runs, '--only', *STUDY_NOTEBOOKS, 'index'))/'smoke'


@pytest.fixture(scope='session')
def whole_site(request, tmp_path_factory, worker_id):
    "The real site: $SITE, else _site/ where that is up to date, else one of the smoke study"
    from report.site import up_to_date
    if os.environ.get('SITE'): return Path(os.environ['SITE']).resolve()
    if up_to_date(ROOT, 'demo'): return ROOT/'_site'
    def make(out):
        runs = request.getfixturevalue('smoke').parent
        command('report.site', 'smoke', '--runs', runs, '--out', out, '--as-they-are')
    return once(tmp_path_factory, worker_id, 'smoke_site', make)


@pytest.fixture(scope='session')
def screens(whole_site):
    "Where pictures of the site are left for a look"
    return Path(os.environ['SCREENS']) if os.environ.get('SCREENS') else ROOT/'runs'/('demo' if whole_site == ROOT/'_site' else 'smoke')/'screens'


def tiny_study(runs, steps):
    "A study of two dances in the folder `runs`: clip table and frames, nothing trained"
    import pandas as pd
    from kinetics_dance.clips.table import ClipTable
    from kinetics_dance.loading.store import build_store
    from kinetics_dance.synthetic import dancers, uploads
    at, rows = runs/'tiny', []
    (at/'videos').mkdir(parents=True)
    for number in range(9):
        for k, step in enumerate(steps):
            name = f'upload{number:05d}_{k:06d}_{k+3:06d}'
            uploads.write_video(at/'videos'/f'{name}.mp4', dancers.render_clip(step, 0, number))
            rows.append(dict(clip_id=name, path=f'videos/{name}.mp4', label=dancers.PAIRS[step][0], youtube_id=f'upload{number:05d}',
                             group=f'upload{number:05d}', time_start=k, time_end=k+3, source='folder',
                             split='train' if number < 5 else 'valid' if number < 7 else 'test'))
    table = pd.DataFrame(rows)
    clips = ClipTable(at/'clips.sqlite')
    clips.set(table)
    clips.update([dict(clip_id=c, status='ok', seconds=3., frames=45) for c in table.clip_id])
    build_store(table, at/'frames', n_frames=8, size=(48, 64), base=at, jobs=1)
    return runs
