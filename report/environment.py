"""The environment of the project: makes .venv, or brings it up to date, from a lock.

    python report/environment.py report          # or: make env; for `make report`
    python report/environment.py test            # all that the tests need on top

It runs before anything is installed, so it needs the standard library only.

uv installs (from PATH, or fetched into the environment), and pip where uv cannot be had. What was
installed is noted in `.venv/.stamp`: nothing is done while that is what the lock says. One that was
stopped goes on where it was, after a look for packages that are only half there. Variables:

    TORCH=cpu        CPU-only torch, from TORCH_INDEX; default: the registry's; unset: what is there
    TORCH_INDEX=URL  another index for it
    INSTALLER=pip    do without uv
    VENV=PATH        another place than .venv"""
import csv, errno, hashlib, json, os, re, shutil, signal, subprocess, sys
import tempfile, threading, time
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path: sys.path.insert(0, str(ROOT))     # this module needs nothing installed
from kinetics_dance.core.platform import lock_file as take_lock, open_terminal  # noqa: E402

ENVIRONMENTS = ('report', 'test')       # each one is a part of the next
TORCH_INDEX = 'https://download.pytorch.org/whl/cpu'
PAIR = ('torch', 'torchvision')         # both must come from the same kind of build
# what only the registry's builds of torch need
OF_CUDA = re.compile(r'triton$|nvidia-|cuda-')
# on Linux; those with CPU-only torch are sums of what its packages weigh
GIGABYTES = {('report', 'default'): 7.2, ('report', 'cpu'): 2.4,
             ('test', 'default'): 7.9, ('test', 'cpu'): 3.1}
OLDEST_UV = (0, 5)
EVERY = 20      # seconds between lines where there is no terminal

NO_NETWORK = re.compile(r'name resolution|dns error|getaddrinfo|Name or service not known'
                        r'|nodename nor servname|[Cc]onnection (refused|reset|aborted|broken)'
                        r'|unreachable|[Tt]imed? ?out|tcp connect error|error sending request'
                        r'|client error \(Connect\)|NewConnectionError|SSLError|ProxyError'
                        r'|certificate verify failed|invalid peer certificate')
NO_SPACE = re.compile(r'No space left on device|[Dd]isk quota exceeded'
                      r'|os error (28|122)\b|Errno (28|122)\b')
WRONG_HASH = re.compile(r'Hash mismatch for `?([\w.=+-]+)|DO NOT MATCH THE HASHES')
NOT_THERE = re.compile(r'there is no version of ([\w.-]+)'
                       r'|No matching distribution found for ([\w.-]+)'
                       r'|([\w.-]+) was not found in the package registry'
                       r'|([\w.-]+)==\S+ has no (?:`|\S+ wheels|wheels)')


NO_PIP = 'this Python has neither pip nor ensurepip: install python3-venv (Debian, Ubuntu), or uv'


class Failure(Exception):
    "What went wrong, in one line"


def say(line): print(f'environment: {line}', file=sys.stderr, flush=True)


# --- what settings.ini and the locks say

def settings_of(root=ROOT):
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


def extras(cfg):
    "{name: requirements} of every extra: each `<name>_requirements` of settings.ini is one"
    end = '_requirements'
    return {k[:-len(end)]: v.split() for k, v in cfg.items() if k.endswith(end)}


def lock_file(name, root=ROOT): return root/'locks'/f'{name}.txt'


def sha(*texts): return hashlib.sha256('\0'.join(texts).encode()).hexdigest()[:20]


def digest_of_settings(cfg):
    "What a lock is made from"
    keys = sorted(k for k in cfg if k.endswith('requirements'))
    return sha(*(f'{k} {" ".join(cfg[k].split())}' for k in (*keys, 'min_python', 'max_python')))


def digest(name, root=ROOT):
    "What an environment is made from: its lock, and what an editable installation takes besides"
    cfg, lock = settings_of(root), lock_file(name, root)
    if not lock.exists(): raise Failure(f'{lock} is missing: restore it with git checkout locks')
    keys = ('lib_name', 'lib_path', 'console_scripts', 'min_python')
    return sha(lock.read_text(), *(cfg.get(k, '') for k in keys))


def locked(name, root=ROOT):
    "{package: [its lines in the lock]}: several where other Pythons have other versions"
    packages, lines = {}, []
    for line in lock_file(name, root).read_text().splitlines():
        if line[:1] == '#' or not line.strip(): continue
        if m := re.match(r'([\w.-]+)(\[[^]]*\])?==', line):
            packages.setdefault(m[1].lower(), []).append(lines := [])
        lines.append(line)
    return {package: list(map('\n'.join, entries)) for package, entries in packages.items()}


# --- what is there

def read_stamp(venv):
    try: stamp = json.loads((venv/'.stamp').read_text())
    except (OSError, ValueError): return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv, **stamp):
    temporary = venv/'.stamp.tmp'
    temporary.write_text(json.dumps(stamp) + '\n')
    os.replace(temporary, venv/'.stamp')


def wanted(venv, name):
    "(environment, torch) to install: what was asked for, and no less than what is there"
    stamp, torch = read_stamp(venv), os.environ.get('TORCH', '')
    if name not in ENVIRONMENTS: raise Failure(f'{name}: give {" or ".join(ENVIRONMENTS)}')
    if torch not in ('', 'cpu', 'default'): raise Failure(f'TORCH={torch}: give cpu or default')
    larger = stamp.get('environment')
    if larger in ENVIRONMENTS[ENVIRONMENTS.index(name):]: name = larger
    return name, torch or stamp.get('torch') or 'default'


def up_to_date(venv, name, root=ROOT):
    "Is all there that was asked for, as the lock has it now?"
    name, torch = wanted(venv, name)
    stamp = read_stamp(venv)
    if stamp.get('digest') != digest(name, root): return False
    return (stamp['environment'], stamp['torch']) == (name, torch)


def scripts_of(venv): return venv/('Scripts' if os.name == 'nt' else 'bin')


def python_of(venv): return scripts_of(venv)/('python.exe' if os.name == 'nt' else 'python')


def version_of(python):
    "(3, 11) of an interpreter, or None where it does not run"
    code = 'import sys; print(*sys.version_info[:2])'
    try: p = subprocess.run([python, '-c', code], capture_output=True, text=True)
    except OSError: return None
    return tuple(map(int, p.stdout.split())) if p.returncode == 0 else None


def allowed(version, cfg):
    low, high = (tuple(map(int, cfg[k].split('.'))) for k in ('min_python', 'max_python'))
    return version is not None and low <= version <= high


def site_packages(venv):
    where = 'Lib/site-packages' if os.name == 'nt' else 'lib/python3*/site-packages'
    return next(iter(sorted(venv.glob(where))), None)


def is_whole(info):
    "Are all files of an installed package there, and as long as they were?"
    try:
        with (info/'RECORD').open(newline='', encoding='utf-8') as f: rows = list(csv.reader(f))
        # what is said of the package itself may be of another length (decord's is)
        sizes = {row[0]: int(row[2]) for row in rows
                 if len(row) == 3 and row[2] and not row[0].startswith(info.name)}
        if not (info/'METADATA').stat().st_size: return False
        return all((info.parent/path).stat().st_size == size for path, size in sizes.items())
    except (OSError, ValueError, csv.Error): return False


def forget_broken(venv):
    "Make the installer take packages that are only half there for absent; their names"
    site, broken = site_packages(venv), []
    if not site: return broken
    for info in sorted(site.glob('*.dist-info')):
        if is_whole(info): continue
        shutil.rmtree(info)
        broken.append(info.name.split('-')[0])
    for left in site.glob('~*'):        # what pip had put aside when it was stopped
        if left.is_dir(): shutil.rmtree(left)
    return broken


# --- programs that install

def reason(text, program):
    "What an installer's output comes down to, in one line"
    text = re.sub(r'\x1b\[[\d;?]*[A-Za-z]', '', text)
    if NO_SPACE.search(text): return 'no space left on the disk: make room (TORCH=cpu needs less)'
    if m := WRONG_HASH.search(text):
        return f'{m[1] or "a package"} is not what the lock says: it has another hash'
    if NO_NETWORK.search(text): return 'the package registry cannot be reached: is there a network?'
    if m := NOT_THERE.search(text):
        return f'{m[m.lastindex]} is not to be had for this Python and machine'
    lines = [line.strip() for line in re.split(r'[\r\n]+', text)
             if re.search(r'error|Error|ERROR|cause', line)]
    return f'{program} failed: {lines[-1] if lines else "it said nothing"}'


def told(text, n):
    "How far an installer is, from what it printed"
    def count(start): return len(re.findall(rf'^ *{start} ', text, re.M))
    begun, done = count('Downloading'), count('Downloaded')
    fetched = count('Collecting')
    if count('Prepared') or count('Installing collected'): return 'all downloaded, installing'
    if fetched: return f'{fetched} of at most {n} packages fetched'
    return f'{done} of {begun} large downloads done' if begun else 'looking up packages'


def show_lines(child, pipe, start, n):
    "Collect what a program prints, and say at times how far it is"
    parts, last = [], time.monotonic()
    def collect():
        while data := os.read(pipe.fileno(), 65536): parts.append(data.decode(errors='replace'))
    reading = threading.Thread(target=collect, daemon=True)     # Windows cannot wait for a pipe
    reading.start()
    while reading.is_alive():
        reading.join(1)
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            say(f'{last - start:.0f} s, {told("".join(parts), n)}')
    return ''.join(parts)


def show_terminal(child, master):
    "Hand on what a program draws on a terminal, and collect it"
    text = ''
    while True:
        try: data = os.read(master, 65536)
        except OSError: return text     # so Linux says that the other side is closed
        if not data: return text
        sys.stderr.buffer.write(data)
        sys.stderr.flush()
        text = (text + data.decode(errors='replace'))[-100_000:]


def run(command, venv, start, n):
    "Run an installer and show how far it is; (exit status, what it printed). It ends with us"
    command = [str(part) for part in command]
    drawn = open_terminal(sys.stderr) if sys.stderr.isatty() else None
    out = drawn[1] if drawn else subprocess.PIPE
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out,
                             stderr=subprocess.STDOUT)
    try:
        if drawn:
            os.close(out)
            text = show_terminal(child, drawn[0])
        else: text = show_lines(child, child.stdout, start, n)
        code = child.wait()
    except BaseException:
        child.terminate()
        try: child.wait(10)
        except subprocess.TimeoutExpired: child.kill()
        raise
    with (venv/'install.log').open('a') as f: f.write(f'$ {" ".join(command)}\n{text}\n')
    return code, text


def find_uv(venv):
    "uv on PATH or in the environment, if it runs and is not too old, or None"
    if os.environ.get('INSTALLER') == 'pip': return None
    for uv in filter(None, (shutil.which('uv'), shutil.which('uv', path=scripts_of(venv)))):
        try: p = subprocess.run([uv, '--version'], capture_output=True, text=True)
        except OSError: continue
        version = re.match(r'uv (\d+)\.(\d+)', p.stdout)
        if p.returncode or not version: continue        # a shim that stands for none
        if tuple(map(int, version.groups())) >= OLDEST_UV: return str(uv)
    return None


class Installer:
    "uv where it can be had, else pip"
    def __init__(self, venv, start):
        self.venv, self.python, self.start, self.uv = venv, python_of(venv), start, find_uv(venv)

    def command(self, *args):
        if not self.uv: return [self.python, '-m', 'pip', 'install', '--disable-pip-version-check', *args]
        # where Python may not keep what it compiles, each process would compile all it imports
        compiled = ['--compile-bytecode'] if sys.dont_write_bytecode else []
        return [self.uv, 'pip', 'install', '--python', self.python, *compiled, *args]

    def __call__(self, *args, index=None, n=1):
        "Run it; its output where it failed"
        # for uv, not --index-url: a variable of the user's would come before that
        where = ['--default-index' if self.uv else '--index-url', index] if index else []
        code, text = run(self.command(*where, *args), self.venv, self.start, n)
        if code and self.uv and not index and NO_NETWORK.search(text) and not NO_SPACE.search(text):
            # uv may have all it needs
            code, again = run(self.command('--offline', *args), self.venv, self.start, n)
            if not code: say('no network: installed from the cache of uv')
        return (text.strip() or f'ended with code {code}') if code else ''

    def locked(self, entries, again=False):
        "Install packages as the lock has them; the output where that failed"
        # in a folder: Windows lets no other process open a temporary file that is open here
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder)/'packages.txt'
            file.write_text('\n'.join(entries) + '\n', encoding='utf-8')
            reinstall = [] if not again else ['--reinstall'] if self.uv else ['--force-reinstall']
            return self('--no-deps', '--require-hashes', *reinstall, '-r', file, n=len(entries))

    def fetch_uv(self, entries):
        "Put uv into the environment; where that cannot be done, pip goes on alone"
        if self.uv or os.environ.get('INSTALLER') == 'pip': return
        trouble = self.locked(entries) if entries else ''
        if NO_NETWORK.search(trouble) or NO_SPACE.search(trouble):
            raise Failure(reason(trouble, 'pip'))
        self.uv = find_uv(self.venv)
        if not self.uv: say('uv cannot be had here: pip installs, which takes a few times as long')


def make_venv(venv, cfg):
    "An environment with a Python that runs and is new enough; the one that is there, if it is"
    if allowed(version_of(python_of(venv)), cfg): return
    ours = {'bin', 'include', 'lib', 'lib64', 'share', 'etc', '.gitignore', '.lock', 'install.log',
            'Scripts', 'Include', 'Lib'}
    there = {p.name for p in venv.iterdir()} if venv.exists() else set()
    if 'pyvenv.cfg' not in there and there - ours:
        raise Failure(f'{venv} holds other things than an environment of Python: '
                      'name another place with make VENV=…')
    if version := version_of(python_of(venv)):
        say(f'{venv.name} has Python {".".join(map(str, version))}: made anew')
    base = getattr(sys, '_base_executable', sys.executable)     # not that of the environment
    bare = ['--without-pip'] if find_uv(venv) else []      # the lock has pip
    p = subprocess.run([base, '-m', 'venv', '--clear', *bare, venv], capture_output=True, text=True)
    said = p.stdout + p.stderr
    if p.returncode and 'ensurepip' in said and not NO_SPACE.search(said): raise Failure(NO_PIP)
    if p.returncode: raise Failure(reason(said, f'{base} -m venv'))


def ensure_pip(python):
    "Put pip into an environment that was made without it"
    if subprocess.run([python, '-c', 'import pip'], capture_output=True).returncode == 0: return
    p = subprocess.run([python, '-m', 'ensurepip'], capture_output=True, text=True)
    if p.returncode: raise Failure(NO_PIP)


def size_of(folder):
    "Bytes on disk, each file once"
    seen = {}
    for at, _, names in os.walk(folder):
        for name in names:
            s = os.lstat(os.path.join(at, name))
            seen[s.st_ino] = getattr(s, 'st_blocks', -(-s.st_size//512))*512
    return sum(seen.values())


def install_torch(installer, packages, torch, have):
    "Torch of another build than the one that is there; first, because it is large and can fail"
    pair = [entry for name in PAIR for entry in packages.get(name, [])]
    if not pair: return
    if torch == 'cpu':
        index = os.environ.get('TORCH_INDEX') or TORCH_INDEX
        versions = [re.match(r'[\w.-]+==[^\s;]+', entry)[0] for entry in pair]
        again = [] if have == 'cpu' else ['--reinstall'] if installer.uv else ['--force-reinstall']
        trouble = installer('--no-deps', *again, *versions, index=index, n=2)
        if trouble and NO_NETWORK.search(trouble):
            raise Failure(f'{index} cannot be reached, and CPU-only torch comes from there: '
                          'name another index with TORCH_INDEX=…, or leave out TORCH=cpu')
        if NOT_THERE.search(trouble):
            raise Failure(f'{index} has not {" and ".join(versions)} for this Python and machine')
    else:
        other = have == 'cpu' or any(site_packages(installer.venv).glob('torch*+cpu.dist-info'))
        trouble = installer.locked(pair, again=True) if other else ''
    if trouble: raise Failure(reason(trouble, 'uv' if installer.uv else 'pip'))


def install(venv, name, root=ROOT):
    "Make or mend the environment"
    name, torch = wanted(venv, name)
    start = time.monotonic()
    stamp, packages = read_stamp(venv), locked(name, root)
    size = GIGABYTES[name, 'cpu' if sys.platform == 'darwin' else torch]        # no CUDA there
    say(f'installing {len(packages)} packages for `make {name}` into {os.path.relpath(venv)} '
        f'(about {size:g} GB)')
    free = shutil.disk_usage(next(p for p in (venv, *venv.parents) if p.exists())).free/1e9
    if free < size and not stamp: say(f'only {free:.1f} GB are free here: that may not be enough')
    make_venv(venv, settings_of(root))
    have = read_stamp(venv).get('torch')
    write_stamp(venv, environment=name, torch=have)
    (venv/'install.log').unlink(missing_ok=True)
    if broken := forget_broken(venv):
        more = ' …' if broken[5:] else ''
        say(f'half there, and so installed again: {", ".join(broken[:5])}{more}')
    installer = Installer(venv, start)
    if not installer.uv: ensure_pip(installer.python)
    installer.fetch_uv(packages.get('uv'))
    install_torch(installer, packages, torch, have)
    write_stamp(venv, environment=name, torch=torch)
    rest = [entry for package, entries in packages.items() for entry in entries
            if torch == 'default' or package not in PAIR and not OF_CUDA.match(package)]
    trouble = installer.locked(rest)
    if not trouble and (broken := forget_broken(venv)):     # it was broken in uv's cache already
        clean = [installer.uv, 'cache', 'clean', *broken]
        if installer.uv: subprocess.run(clean, capture_output=True)
        trouble = installer.locked(rest)
    trouble = trouble or installer('--no-deps', '--no-build-isolation', '-e', root)
    if trouble: raise Failure(reason(trouble, 'uv' if installer.uv else 'pip'))
    write_stamp(venv, environment=name, torch=torch, digest=digest(name, root))
    say(f'done in {time.monotonic() - start:.0f} s, {size_of(venv)/1e9:.1f} GB')


def used_as_it_is(venv):
    "An environment that is linked here belongs to somebody else: nothing is installed into it"
    if not venv.is_symlink(): return False
    if version_of(python_of(venv)) is None:
        raise Failure(f'{venv} is a link, and no Python runs there: delete it, '
                      'or name another place with make VENV=…')
    say(f'{os.path.relpath(venv)} is a link: used as it is, nothing is installed')
    return True


def environment(name, root=ROOT):
    "Make the environment be there; 0"
    venv, cfg = Path(os.environ.get('VENV') or root/'.venv').absolute(), settings_of(root)
    if not allowed(sys.version_info[:2], cfg):
        raise Failure(f'{sys.executable} is not Python {cfg["min_python"]} to {cfg["max_python"]}')
    with (root/'settings.ini').open() as lock:
        if not take_lock(lock):
            say('another make is installing: waiting for it')
            take_lock(lock, wait=True)
        if python_of(venv).exists() and up_to_date(venv, name, root): return 0
        if not used_as_it_is(venv): install(venv, name, root)
    return 0


def main(name, *options):
    "Exit status: 0 where all is as asked for, 2 after one line that says why not, 130 when stopped"
    def stop(number, frame): raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, stop)
    try:
        if options == ('--check',):
            venv = Path(os.environ.get('VENV') or ROOT/'.venv').absolute()
            return 0 if up_to_date(venv, name) else 1
        return environment(name)
    except Failure as e: line, code = str(e), 2
    except KeyboardInterrupt: line, code = 'stopped; the next make goes on where this one was', 130
    except OSError as e:
        line, code = f'{e.filename or "the disk"}: {e.strerror or e}', 2
        if e.errno in (errno.ENOSPC, getattr(errno, 'EDQUOT', errno.ENOSPC)): line = reason('No space left on device', 'make')
    print(f'error: {line}', file=sys.stderr)
    return code


if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
