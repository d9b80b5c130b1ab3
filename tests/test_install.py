"""Installation as `make env` does it: a small project with small packages, from an index on this machine.

The installers are real where that is quick (uv, pip); stand-ins of a few lines play what is slow or rare."""
import base64, functools, hashlib, importlib.metadata, os, pty, re, shutil, signal, subprocess, sys, threading, time, zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pytest
from conftest import ROOT
from report import environment as env_module

BASE = getattr(sys, '_base_executable', sys.executable)     # the Python that environments are made with
NOWHERE = 'http://127.0.0.1:9'                              # nothing listens there
UV = next((str(p) for p in (Path(sys.executable).with_name('uv'), *map(Path, filter(None, [shutil.which('uv')]))) if p.exists()), None)
needs_uv = pytest.mark.skipif(UV is None, reason='uv is not installed')


def make_wheel(folder, name, version, files=None):
    "A wheel of some files; its path"
    files = files or {f'{name}.py': f'version = {version!r}\n'.encode()}
    info = f'{name}-{version}.dist-info'
    files |= {f'{info}/METADATA': f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'.encode(),
              f'{info}/WHEEL': b'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n'}
    def row(n, data): return f'{n},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")},{len(data)}'
    files[f'{info}/RECORD'] = '\n'.join([*(row(n, d) for n, d in files.items()), f'{info}/RECORD,,']).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder/f'{name}-{version}-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as z:
        for n, data in files.items():
            entry = zipfile.ZipInfo(n)
            entry.external_attr = (0o100755 if '/scripts/' in n else 0o100644) << 16 # older pip asks for a regular file
            z.writestr(entry, data)
    return path


# what an editable installation needs of setuptools, in place of its 500 files
BUILD = '''
import configparser, zipfile
def build_editable(folder, *args):
    cfg = configparser.ConfigParser(delimiters=["="])
    cfg.read("settings.ini")
    name, version, command = (cfg["DEFAULT"][k] for k in ("lib_name", "version", "console_scripts"))
    files = {f"{name}.pth": __import__("os").getcwd() + "\\n"}
    info = f"{name}-{version}.dist-info/"
    files[info + "METADATA"] = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    files[info + "WHEEL"] = "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    files[info + "entry_points.txt"] = f"[console_scripts]\\n{command}\\n"
    files[info + "RECORD"] = "".join(f"{n},,\\n" for n in [*files, info + "RECORD"])
    with zipfile.ZipFile(f"{folder}/{name}-{version}-py3-none-any.whl", "w") as z:
        for n, text in files.items(): z.writestr(n, text)
    return f"{name}-{version}-py3-none-any.whl"
class __legacy__:
    build_editable = staticmethod(build_editable)
    get_requires_for_build_editable = staticmethod(lambda *args: [])
'''


def sha256(path): return hashlib.sha256(path.read_bytes()).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


class Index:
    "A package index on this machine: folders simple/ and cpu/ of pages, and the wheels"
    def __init__(self, folder):
        self.folder = folder
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'

    def add(self, path, index='simple'):
        page = self.folder/index/path.name.split('-')[0].replace('_', '-')/'index.html'
        page.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, page.parent)
        with page.open('a') as f: f.write(f'<a href="{path.name}#sha256={sha256(path)}">{path.name}</a><br>\n')


@pytest.fixture(scope='module')
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp('index')
    made = Index(folder)
    packages = [make_wheel(folder/'made', n, '1.0') for n in ('tiny', 'extra')]
    packages += [make_wheel(folder/'made', 'setuptools', '99.0', {'setuptools/__init__.py': b'', 'setuptools/build_meta.py': BUILD.encode()})]
    packages += [make_wheel(folder/'made', n, '2.0') for n in ('torch', 'torchvision', 'triton')]
    packages += [make_wheel(folder/'made', 'nvidia_small', '2.0')]
    for p in packages: made.add(p)
    for n in ('torch', 'torchvision'): made.add(make_wheel(folder/'made', n, '2.0+cpu'), 'cpu')
    made.newer = make_wheel(folder/'made', 'tiny', '1.1')
    made.add(made.newer)
    made.wheels = {p.name.split('-')[0]: p for p in packages}
    yield made
    made.server.shutdown()


def pin(path):
    name, version = path.name.split('-')[:2]
    return f'{name.replace("_", "-")}=={version} \\\n    --hash=sha256:{sha256(path)}\n'


class Project:
    "The Makefile, setup.py and report/environment.py of this project around a library of one line"
    def __init__(self, root, index):
        self.root, self.index, self.venv = root, index, root/'.venv'
        for f in ('Makefile', 'setup.py', 'report/environment.py', 'kinetics_dance/core/platform.py', 'LICENSE'):
            (root/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT/f, root/f)
        (root/'settings.ini').write_text(re.sub(r'^((\w+_)?requirements) = .*', r'\1 = tiny', (ROOT/'settings.ini').read_text(), flags=re.M))
        (root/'README.md').write_text('# A project\n')
        (root/'kinetics_dance/study').mkdir(parents=True)
        for f in ('__init__.py', 'py.typed', 'core/__init__.py', 'study/__init__.py'): (root/'kinetics_dance'/f).touch()
        (root/'kinetics_dance/study/cli.py').write_text("def main(): print('hello')\n")
        self.lock('report', 'setuptools', 'tiny')
        self.lock('test', 'setuptools', 'tiny', 'extra')
        self.tools, self.url = root.parent/'tools', f'{index.url}/simple'
        self.tools.mkdir(exist_ok=True)

    def lock(self, name, *packages):
        path = self.root/'locks'/f'{name}.txt'
        path.parent.mkdir(exist_ok=True)
        path.write_text('# Written by hand\n' + ''.join(pin(self.index.wheels[p]) for p in packages))

    def tool(self, name, script):
        "A program on PATH"
        path = self.tools/name
        path.unlink(missing_ok=True)
        path.write_text(script)
        path.chmod(0o755)

    def real_uv(self):
        (self.tools/'uv').unlink(missing_ok=True)
        os.symlink(UV, self.tools/'uv')

    def environ(self, **variables):
        work = self.root.parent
        return {'PATH': f'{self.tools}:/usr/bin:/bin', 'HOME': str(work/'home'), 'UV_CACHE_DIR': str(work/'uv'), 'PIP_CACHE_DIR': str(work/'pip'),
                'UV_DEFAULT_INDEX': self.url, 'PIP_INDEX_URL': self.url, 'PIP_CONFIG_FILE': os.devnull, 'UV_NO_CONFIG': '1', 'UV_HTTP_RETRIES': '0',
                'PIP_RETRIES': '1', 'LC_ALL': 'C.UTF-8', **variables}

    def popen(self, *args, **variables):
        return subprocess.Popen(['make', '-s', *args, f'PYTHON={BASE}'], cwd=self.root, env=self.environ(**variables), stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, start_new_session=True,
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def make(self, *args, rc=0, **variables):
        "Lines that `make` says"
        p = self.popen(*args, **variables)
        out, err = p.communicate(timeout=120)
        assert (p.returncode == 0) == (rc == 0), out + err
        lines = [l for l in (out + err).splitlines() if not l.startswith('make: ')]
        assert not [l for l in lines if 'Traceback' in l], err
        return lines

    def fails(self, *args, **variables):
        "The one line that says why it failed; before it come only lines on how far it was"
        lines = self.make(*args, rc=2, **variables)
        assert [l for l in lines if not l.startswith('environment: ')] == lines[-1:] and lines[-1].startswith('error: '), lines
        return lines[-1]

    def imports(self, name):
        return subprocess.run([self.venv/'bin/python', '-c', f'import {name}'], cwd='/', env=self.environ(), capture_output=True).returncode == 0

    def site(self): return env_module.site_packages(self.venv)


@pytest.fixture
def project(tmp_path, index):
    p = Project(tmp_path/'a clone', index)
    if UV: p.real_uv()
    return p


@pytest.fixture(scope='module')
def with_pip(tmp_path_factory):
    "An environment with pip: it takes seconds to make"
    folder = tmp_path_factory.mktemp('with_pip')/'venv'
    subprocess.run([BASE, '-m', 'venv', folder], check=True)
    return folder


@pytest.fixture
def without_uv(project, with_pip):
    "The project where uv is not on PATH, with an environment that was just made"
    (project.tools/'uv').unlink(missing_ok=True)
    shutil.copytree(with_pip, project.venv, symlinks=True, copy_function=os.link)
    return project


# --- what should happen

@needs_uv
def test_install_and_again(project):
    "An environment from the lock, with the library and its command; then nothing to do, and no network needed"
    first = project.make('env')
    assert re.match(r'environment: installing 2 packages for `make report` into \.venv', first[0]) and re.match(r'environment: done in \d+ s', first[-1])
    assert project.imports('tiny') and not project.imports('extra')
    assert subprocess.run([project.venv/'bin/kinetics-dance'], env=project.environ(), capture_output=True, text=True).stdout == 'hello\n'
    start = time.monotonic()
    assert project.make('env', UV_DEFAULT_INDEX=NOWHERE) == []
    # the larger environment holds the smaller one, and stays when the smaller one is asked for
    project.make('env-test')
    assert project.imports('extra') and project.make('env', UV_DEFAULT_INDEX=NOWHERE) == []
    with (project.root/'locks/test.txt').open('a') as f: f.write('# changed\n')
    assert 'for `make test`' in project.make('env')[0]


@needs_uv
def test_a_changed_lock_is_installed(project, index):
    project.make('env')
    lock = project.root/'locks/report.txt'
    lock.write_text(lock.read_text().replace(pin(index.wheels['tiny']), pin(index.newer)))
    project.make('env')
    assert [p.name for p in project.site().glob('tiny-*')] == ['tiny-1.1.dist-info']
    settings = project.root/'settings.ini'
    settings.write_text(settings.read_text() + '# a remark\n')
    assert project.make('env', UV_DEFAULT_INDEX=NOWHERE) == [], 'a remark in settings.ini changes nothing'


@needs_uv
def test_compiled_where_python_may_not_keep_what_it_compiles(project):
    "Else each process would compile torch again: seconds a notebook"
    project.make('env', PYTHONDONTWRITEBYTECODE='1')
    assert list((project.site()/'__pycache__').glob('tiny.*.pyc'))


def test_pip_where_uv_cannot_be_had(project, monkeypatch):
    "No uv on PATH but a shim that stands for none, and none in the lock: pip installs the same, hashes and all"
    for useless in ('echo "uv: command not found" >&2; exit 127', 'echo "uv 0.1.2"'):
        project.tool('uv', f'#!/bin/sh\n{useless}\n')
        monkeypatch.setenv('PATH', f'{project.tools}:/usr/bin:/bin')
        assert env_module.find_uv(project.venv) is None
    lines = project.make('env')
    assert 'environment: uv cannot be had here: pip installs, which takes a few times as long' in lines
    assert project.imports('tiny') and project.make('env', PIP_INDEX_URL=NOWHERE) == []
    (project.site()/'tiny.py').unlink()
    env_module.write_stamp(project.venv, environment='report', torch='default')
    assert 'environment: half there, and so installed again: tiny' in project.make('env') and project.imports('tiny')
    project.lock('report', 'setuptools', 'tiny', 'extra')
    assert 'the package registry cannot be reached' in project.fails('env', PIP_INDEX_URL=NOWHERE)


def test_uv_is_fetched_into_the_environment(without_uv, index, tmp_path):
    "From the lock, by pip, with its hash; where there is no network, that is said at once"
    stand_in = '#!/bin/sh\n[ "$1" = --version ] && exec echo uv 9.0\nexit 1\n'
    wheel = make_wheel(tmp_path/'made', 'uv', '9.0', {'uv-9.0.data/scripts/uv': stand_in.encode()})
    index.add(wheel)
    with (without_uv.root/'locks/report.txt').open('a') as f: f.write(pin(wheel))
    assert 'the package registry cannot be reached' in without_uv.fails('env', PIP_INDEX_URL=NOWHERE)
    assert 'uv failed' in without_uv.fails('env'), 'the stand-in was asked to install'
    assert (without_uv.venv/'bin/uv').exists()


@needs_uv
def test_progress_in_a_terminal(project):
    "There, uv draws itself"
    main, side = pty.openpty()
    p = subprocess.Popen([BASE, 'report/environment.py', 'report'], cwd=project.root, env=project.environ(TERM='xterm'), stdout=side, stderr=side)
    os.close(side)
    text = ''
    while True:
        try: data = os.read(main, 65536)
        except OSError: break
        if not data: break
        text += data.decode(errors='replace')
    assert p.wait(60) == 0, text
    assert 'Installed' in text and '\x1b[' in text and 'environment: done' in text


def test_progress_without_a_terminal(project):
    "A line at times: how far it is"
    project.tool('uv', '#!/bin/sh\n[ "$1" = --version ] && exec echo uv 9.0\necho "Downloading torch (800MiB)"; echo " Downloaded torch"; sleep 1.2; exit 0\n')
    source = project.root/'report/environment.py'
    source.write_text(source.read_text().replace('EVERY = 20', 'EVERY = .1'))
    assert re.search(r'environment: \d+ s, 1 of 1 large downloads done', '\n'.join(project.make('env')))
    assert env_module.told('Collecting a\n  Downloading a.whl (2 kB)\nCollecting b\n', 9) == '2 of at most 9 packages fetched'
    assert env_module.told('Downloading a (2MiB)\nPrepared 2 packages', 9) == 'all downloaded, installing'


# --- what can go wrong: one line, and the next run repairs it

@needs_uv
def test_no_network(project):
    line = project.fails('env', UV_DEFAULT_INDEX=NOWHERE)
    assert line == 'error: the package registry cannot be reached: is there a network?'
    project.make('env')
    assert project.imports('tiny')


@needs_uv
def test_no_network_but_a_full_cache(project):
    "What uv has downloaded once can be installed anywhere"
    project.make('env')
    shutil.rmtree(project.venv)
    said = project.make('env', HTTP_PROXY=NOWHERE, ALL_PROXY=NOWHERE, NO_PROXY='')
    assert project.imports('tiny')


@pytest.mark.parametrize('says', ['error: failed to write to file `x`: No space left on device (os error 28)',
                                  "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", 'Disk quota exceeded (os error 122)'])
def test_full_disk(project, says):
    project.tool('uv', f"#!/bin/sh\n[ \"$1\" = --version ] && exec echo uv 9.0\ncat >&2 <<'E'\n{says}\nE\nexit 2\n")
    assert project.fails('env') == 'error: no space left on the disk: make room (TORCH=cpu needs less)'
    if UV:
        project.real_uv()
        project.make('env')
        assert project.imports('tiny')


def test_python_that_is_too_old(project):
    project.tool('python2', '#!/bin/sh\n[ "$1" = -V ] && exec echo "Python 2.7.18"; exit 1\n')
    p = subprocess.run(['make', '-s', 'env', 'PYTHON=python2'], cwd=project.root, env=project.environ(), capture_output=True, text=True)
    assert p.returncode == 2 and not project.venv.exists()
    line = p.stderr.splitlines()[0]
    assert line.startswith('error: Python 3.11 to 3.13 is needed; found python2 (Python 2.7.18), ') and 'make PYTHON=' in line
    # the first one that will do is taken
    if not UV: return
    p = subprocess.run(['make', '-s', 'env', f'PYTHON=python2 nothing {BASE}'], cwd=project.root, env=project.environ(), capture_output=True, text=True)
    assert p.returncode == 0, p.stderr


@needs_uv
def test_half_installed(project):
    "A file that is gone, one that was cut off, a package without its record: installed again"
    project.lock('report', 'setuptools', 'tiny', 'extra')
    project.make('env')
    site, lib = project.site(), next(project.site().glob('extra-*'))
    (site/'tiny.py').unlink()
    (lib/'RECORD').unlink()
    with (site/'setuptools/build_meta.py').open('r+') as f: f.truncate(3)       # in uv's cache, too: it is the same file
    (site/'~iny').mkdir()
    env_module.write_stamp(project.venv, environment='report', torch='default')
    lines = project.make('env')
    assert 'environment: half there, and so installed again: extra, setuptools, tiny' in lines
    assert project.imports('tiny, extra, setuptools.build_meta') and not (site/'~iny').exists()
    assert all(map(env_module.is_whole, site.glob('*.dist-info')))


def test_every_package_here_is_whole():
    "The look for half packages raises no false alarm: not for one package that is really installed"
    site = Path(importlib.metadata.distribution('pytest').locate_file(''))
    assert [p.name for p in site.glob('*.dist-info') if not env_module.is_whole(p)] == []


@needs_uv
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_stopped_in_the_middle(project, number):
    "Ctrl-C, or a signal to make's group: one line, no process stays, and the next run goes on"
    project.tool('uv', '#!/bin/sh\n[ "$1" = --version ] && exec echo uv 9.0\necho $$ > "$HOME/child"; touch "$HOME/begun"; exec sleep 60\n')
    home = project.root.parent/'home'
    home.mkdir()
    p = project.popen('env')
    for _ in range(300):
        if (home/'begun').exists(): break
        time.sleep(.1)
    os.killpg(p.pid, number)
    out, err = p.communicate(timeout=30)
    assert p.returncode and 'error: stopped; the next make goes on where this one was' in err and 'Traceback' not in err
    with pytest.raises(ProcessLookupError): os.kill(int((home/'child').read_text()), 0)
    # as a half written package would look
    made = project.site()/'tiny-1.0.dist-info'
    made.mkdir()
    (made/'METADATA').write_text('Name: tiny\n')
    project.real_uv()
    assert 'environment: half there, and so installed again: tiny' in project.make('env')
    assert project.imports('tiny')


@needs_uv
def test_an_environment_whose_python_is_gone(project):
    project.make('env')
    (project.venv/'bin/python').unlink()
    os.symlink('/nowhere/python', project.venv/'bin/python')
    project.make('env')
    assert project.imports('tiny')


@needs_uv
def test_another_hash(project, index):
    "What is not what the lock says is not installed"
    lock = project.root/'locks/report.txt'
    lock.write_text(lock.read_text().replace(sha256(index.wheels['tiny']), '0'*64))
    assert re.search(r'error: tiny.* is not what the lock says', project.fails('env')) and not project.imports('tiny')
    lock.unlink()
    assert 'report.txt is missing: restore it with git checkout locks' in project.fails('env')


@needs_uv
def test_only_an_environment_is_replaced(project, tmp_path):
    "Neither a folder of other things nor the environment behind a link is touched"
    other = tmp_path/'mine'
    other.mkdir()
    (other/'thesis.txt').write_text('years of work')
    assert 'holds other things than an environment of Python' in project.fails('env', f'VENV={other}')
    assert (other/'thesis.txt').exists() and len(list(other.iterdir())) == 1
    os.symlink(other, project.venv)
    assert 'is a link, and no Python runs there' in project.fails('env')
    project.venv.unlink()
    subprocess.run([BASE, '-m', 'venv', '--without-pip', tmp_path/'theirs'], check=True)
    os.symlink(tmp_path/'theirs', project.venv)
    before = sorted(p for p in (tmp_path/'theirs').rglob('*'))
    assert project.make('env') == ['environment: .venv is a link: used as it is, nothing is installed']
    assert sorted(p for p in (tmp_path/'theirs').rglob('*') if '__pycache__' not in p.parts) == before


def test_two_at_the_same_time(project):
    "The second one waits, and then has nothing to do"
    project.tool('uv', '#!/bin/sh\n[ "$1" = --version ] && exec echo uv 9.0\nmkdir -p "$HOME"; echo >> "$HOME/begun"; sleep 1.5\n')
    begun, first = project.root.parent/'home/begun', project.popen('env')
    for _ in range(300):
        if begun.exists(): break
        time.sleep(.1)
    second = project.make('env')
    assert second == ['environment: another make is installing: waiting for it']
    assert first.wait(30) == 0 and len(begun.read_text().splitlines()) == 2       # the lock, and the library


# --- CPU-only torch

@pytest.fixture
def torch_project(project):
    project.lock('report', 'setuptools', 'tiny', 'torch', 'torchvision', 'triton', 'nvidia_small')
    return project


def versions(project): return dict(p.name.removesuffix('.dist-info').split('-') for p in project.site().glob('*.dist-info'))


@needs_uv
def test_torch_for_the_cpu(torch_project, index):
    "From the other index, without what only CUDA needs; it stays until another build is asked for"
    p, cpu = torch_project, f'{index.url}/cpu'
    assert '(about 2.4 GB)' in p.make('env', 'TORCH=cpu', f'TORCH_INDEX={cpu}')[0]
    have = versions(p)
    assert have['torch'] == have['torchvision'] == '2.0+cpu' and have['tiny'] == '1.0' and not {'triton', 'nvidia_small'} & set(have)
    assert p.make('env', UV_DEFAULT_INDEX=NOWHERE) == []
    with (p.root/'locks/report.txt').open('a') as f: f.write(pin(index.wheels['extra']))
    p.make('env')
    assert versions(p)['torch'] == '2.0+cpu' and 'triton' not in versions(p)
    p.make('env', 'TORCH=default')
    assert versions(p)['torch'] == '2.0' and {'triton', 'nvidia_small'} <= set(versions(p))
    p.make('env', 'TORCH=cpu', f'TORCH_INDEX={cpu}')
    assert versions(p)['torch'] == versions(p)['torchvision'] == '2.0+cpu'


def test_torch_for_the_cpu_by_pip(torch_project, without_uv, index):
    torch_project.make('env', 'TORCH=cpu', f'TORCH_INDEX={index.url}/cpu')
    assert versions(torch_project)['torch'] == '2.0+cpu' and 'triton' not in versions(torch_project)


@needs_uv
def test_torch_index_that_cannot_be_reached(torch_project, index):
    "One line, before anything large is downloaded; nor is anything else taken in its place"
    line = torch_project.fails('env', 'TORCH=cpu', f'TORCH_INDEX={NOWHERE}/cpu')
    assert line.startswith(f'error: {NOWHERE}/cpu cannot be reached, and CPU-only torch comes from there: name another index with TORCH_INDEX=')
    assert 'torch' not in versions(torch_project)
    assert re.search(rf'error: {index.url}/none has not torch==2.0 and torchvision==2.0', torch_project.fails('env', 'TORCH=cpu', f'TORCH_INDEX={index.url}/none'))
    assert torch_project.fails('env', 'TORCH=gpu') == 'error: TORCH=gpu: give cpu or default'
    torch_project.make('env', 'TORCH=cpu', f'TORCH_INDEX={index.url}/cpu')
    assert versions(torch_project)['torch'] == '2.0+cpu'


def test_default_index_of_torch():
    assert env_module.TORCH_INDEX == 'https://download.pytorch.org/whl/cpu'
