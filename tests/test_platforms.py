"""The library where it is not Linux: modules of POSIX systems absent, no decord, processes that start by spawn only, paths of Windows."""
import ast, json, os, re, subprocess, sys, textwrap
from pathlib import Path, PureWindowsPath
import psutil, pytest
from conftest import ROOT

POSIX = {'fcntl', 'resource', 'pwd', 'grp', 'termios', 'tty', 'pty', 'syslog', 'posix', 'crypt', 'spwd', 'nis'}
CALLS = {'killpg', 'setsid', 'getpgid', 'setpriority', 'getpriority', 'fork', 'forkpty', 'statvfs', 'sysconf', 'sched_getaffinity',
         'getuid', 'geteuid', 'getgid', 'uname', 'mkfifo', 'getloadavg', 'nice', 'posix_fadvise', 'chown', 'SIGKILL', 'SIGHUP', 'symlink_to'}
HOME = 'kinetics_dance/core/platform.py'
# Functions that a trained model's key hashes: moved, every model would be trained again. Each has its alternative already
# (`except ImportError`, `hasattr`), which `test_without_modules_of_posix` runs.
KEPT = {'kinetics_dance/loading/reader.py': {'resource', 'sched_getaffinity'},
        'kinetics_dance/loading/workers.py': {'resource', 'sched_getaffinity', 'statvfs', '/proc'}}
FILES = sorted(p for d in ('kinetics_dance', 'report') for p in (ROOT/d).rglob('*.py') if p.name != '_modidx.py')


def asks_of_posix(text):
    "Modules, calls and paths that only POSIX systems have, as a file names them"
    found = set()
    for n in ast.walk(ast.parse(text)):
        if isinstance(n, ast.Import): found |= {a.name.split('.')[0] for a in n.names} & POSIX
        elif isinstance(n, ast.ImportFrom) and not n.level: found |= {(n.module or '').split('.')[0]} & POSIX
        elif isinstance(n, ast.Attribute): found |= {n.attr} & CALLS
        elif isinstance(n, ast.Constant) and isinstance(n.value, str) and re.match(r'/(proc|sys)/', n.value): found.add('/proc')
    return found


def test_the_check_sees_what_it_should():
    for code in ('import fcntl', 'def f():\n    from resource import getrlimit', 'os.killpg(1, 9)', "open('/proc/self/status')", 'kill(signal.SIGKILL)'):
        assert asks_of_posix(code), code
    assert not asks_of_posix('import os, signal\nos.kill(1, signal.SIGTERM)')


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_one_module_knows_the_platform(path):
    name = path.relative_to(ROOT).as_posix()
    if name == HOME: return
    assert asks_of_posix(path.read_text(encoding='utf-8')) == KEPT.get(name, set()), f'{name}: see {HOME}'


# what every process of such a test sees, those that it starts, too: Python reads it when it starts
HIDE = textwrap.dedent('''
    import importlib.abc, importlib.util, os, sys
    import asyncio, multiprocessing, shutil, subprocess, tarfile, tempfile      # what Python's own modules loaded stays with them
    hidden = set(os.environ['HIDDEN'].split(','))
    class Hide(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split('.')[0] in hidden: raise ModuleNotFoundError(f'{name} is hidden', name=name)
    real = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: None if name.split('.')[0] in hidden else real(name, *more)
    for name in [m for m in sys.modules if m.split('.')[0] in hidden]: del sys.modules[name]
    sys.meta_path.insert(0, Hide())
    if 'fcntl' in hidden:
        for name in ('killpg', 'setsid', 'sched_getaffinity', 'statvfs', 'sysconf', 'setpriority', 'getpriority'):
            if hasattr(os, name): delattr(os, name)
        def refuse(*args, **kw): raise RuntimeError('no fork here')
        os.fork = refuse
        multiprocessing.set_start_method('spawn')
''')
BUILTIN = {'pwd', 'posix'}      # Python itself is made of them here


def elsewhere(tmp_path, code, *hidden, timeout=200):
    "Run a program in which modules are hidden; what it printed"
    script, start = tmp_path/'elsewhere.py', tmp_path/'start'
    start.mkdir(exist_ok=True)
    (start/'sitecustomize.py').write_text(HIDE)
    script.write_text("if __name__ == '__main__':\n" + textwrap.indent(textwrap.dedent(code), '    '))
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(start), str(ROOT)]), HIDDEN=','.join(hidden), OMP_NUM_THREADS='1')
    p = subprocess.run([sys.executable, '-W', 'ignore', script], cwd=tmp_path, capture_output=True, text=True, timeout=timeout, env=env)
    assert p.returncode == 0, p.stdout[-2000:] + p.stderr[-3000:]
    return p.stdout


PREDICT = '''
    from pathlib import Path
    from kinetics_dance.inference import Predictor
    p = Predictor.load('model')
    found = p.predict('v.mp4')
    print(round(float(found.probabilities.sum()), 3), found.top(1)[0][0])
    p.close()
'''


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A folder with a small model and a video"
    from kinetics_dance.synthetic import dancers, uploads
    from test_inference import make_model
    folder = tmp_path_factory.mktemp('model')
    make_model(folder/'model')
    uploads.write_video(folder/'v.mp4', dancers.render_clip('windmill', 0, 0)[::3], fps=5)
    return folder


def test_without_modules_of_posix(model):
    "Every module can be imported, limits fall back, and a store of frames is read"
    modules = [p.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.') for p in FILES
               if p.name != '__init__.py' and p.is_relative_to(ROOT/'kinetics_dance')]
    said = elsewhere(model, f'''
        import importlib, json
        for name in {modules}: importlib.import_module(name)
        from kinetics_dance.core import platform, processes
        from kinetics_dance.loading import reader, workers
        processes.limit_memory(2**30)
        with open('lock', 'w') as f, open('terminal', 'w') as t:
            print(json.dumps([platform.open_terminal(t), platform.limit_data(2**40), platform.cores() > 0,
                              reader.most_maps(), workers.shared_room(), workers._limits(), processes.memory_limit() > 2**20]))
    ''', *POSIX - BUILTIN)
    assert json.loads(said) == [None, False, True, 512, [None, None], [None, None], True]


def test_prediction_without_modules_of_posix_and_decord(model):
    "The process that reads starts without a fork, and the answer is the same with and without"
    with_all = elsewhere(model, PREDICT, 'none')
    assert elsewhere(model, PREDICT, *POSIX - BUILTIN, 'decord') == with_all and with_all


def test_frames_without_decord(model):
    "Its only user is `reader: decord`, which says in one line that it is not there"
    said = elsewhere(model, '''
        from kinetics_dance.core.base import StudyError
        from kinetics_dance.video.reading import read_frames
        print(read_frames('v.mp4', [0, 2], size=(32, 32)).shape)
        try: read_frames('v.mp4', [0], reader='decord')
        except StudyError as e: print(e)
    ''', 'decord').splitlines()
    assert said[0] == '(2, 32, 32, 3)' and 'decord' in said[1] and len(said) == 2


def test_a_windows_like_system(monkeypatch, tmp_path):
    "What is done there: a byte is locked, children are ended by psutil, commands run once more in UTF-8"
    from kinetics_dance.core import platform
    import types, errno
    locked, done = set(), []
    def locking(number, kind, size):
        assert os.lseek(number, 0, os.SEEK_CUR) == platform.FAR
        if locked: raise PermissionError(errno.EACCES, 'Permission denied')
        locked.add(number)
    monkeypatch.setitem(sys.modules, 'msvcrt', types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr(platform.os, 'name', 'nt')
    with open(tmp_path/'lock', 'w+') as one, open(tmp_path/'lock', 'w+') as two:
        assert platform.lock_file(one) and not platform.lock_file(two)
        one.write('who')
        one.flush()
        assert two.read() == 'who'
    monkeypatch.setattr(platform.subprocess, 'call', lambda c, env: done.append((c, env['PYTHONUTF8'])) or 2)
    assert platform.run_in_utf8('kinetics_dance.study.cli', ['predict', 'v.mp4']) == 2
    assert done == [([sys.executable, '-X', 'utf8', '-m', 'kinetics_dance.study.cli', 'predict', 'v.mp4'], '1')]
    assert not platform.is_orphan(os.getpid()) and platform.is_orphan(2**22 + 1)
    monkeypatch.setattr(platform.os, 'name', 'posix')
    monkeypatch.delattr(platform.os, 'killpg')
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
    platform.signal_group(child.pid)
    assert child.wait(20)
    with pytest.raises(ProcessLookupError): platform.signal_group(2**22 + 1)


@pytest.mark.parametrize('name', ['C:\\videos\\a b.mp4', 'C:/videos/a.mp4', '\\\\server\\share\\a.mp4', 'videos\\a.mp4'])
def test_paths_of_windows_are_no_addresses(name):
    "A drive is no scheme of an address"
    from kinetics_dance.core.storage import is_remote
    from kinetics_dance.deploy.request import check_address
    assert not is_remote(name)
    check_address(name)


def test_names_of_files_that_windows_can_hold():
    "What the library calls the files that it writes: no character or name that Windows refuses"
    from kinetics_dance.clips.annotations import folder_name
    for label in ('dancing: ballet', 'a/b', 'what?', 'con', 'x' * 300, 'end. ', 'tab\there', '<b>"|*'):
        name = folder_name(label)
        assert not re.search(r'[<>:"/\\|?*\x00-\x1f]', name) and not name.endswith((' ', '.')), (label, name)
        assert not PureWindowsPath(name).is_reserved() or label == 'con', name


def test_report_without_make(monkeypatch, tmp_path):
    "The environment of the lock is made where this one lacks what notebooks need; then the runner, with the options of make"
    import importlib.util
    from kinetics_dance.study import cli
    ran = []
    class Done: returncode = 0
    monkeypatch.setattr(subprocess, 'run', lambda c, **kw: ran.append([str(x) for x in c]) or Done)
    monkeypatch.setattr(cli, '_checkout', lambda: ROOT)
    study = str(ROOT/'studies'/'demo.yaml')
    def report(*args):
        ran.clear()
        with pytest.raises(SystemExit) as stop: cli.main(['report', *args])
        return stop.value.code or 0
    assert report('--force', '--only', '05', '--only', '06') == 0
    assert ran == [[sys.executable, '-m', 'report.run', study, '--site', '--force', '--only', '05', '06']]
    monkeypatch.setenv('VENV', str(tmp_path/'env'))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == 'papermill' else real(name, *a))
    assert report() == 0
    assert ran[0] == [sys.executable, str(ROOT/'report'/'environment.py'), 'report'] and ran[1][1:] == ['-m', 'report.run', study, '--site']
    assert ran[1][0].startswith(str(tmp_path/'env'))
    Done.returncode = 2
    assert report() == 2 and len(ran) == 1
