"""Python processes that have the large libraries already: imported once, then forked. In a process of its own a test still
gets everything that a new process has (arguments, environment, folder, open files, signals, exit status, a parent that
waits for it), but the seconds that importing pandas or torch takes are paid once a run and not once a process.

`Popen` and `run` stand for those of `subprocess`; `spawn()` has `multiprocessing` start its processes so. What cannot be
had this way (another interpreter, other flags, PYTHON… variables that Python reads when it starts) gets a true new process.
So does everything on a system without Linux' way to adopt processes, and wherever PRELOADED=0 says so.

A request goes to a server, a child of the process that asks. It forks twice and the one in the middle ends, so that the
process that asked inherits the new one (PR_SET_CHILD_SUBREAPER) and can wait for it, signal it and find it among its children."""
import atexit, ctypes, io, os, pickle, signal, socket, struct, subprocess, sys, threading, traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIGHT = ['numpy', 'pandas', 'pyarrow.parquet', 'av', 'PIL.Image', 'imageio_ffmpeg', 'pebble', 'yt_dlp.extractor.generic', 'yt_dlp_ejs.yt', 'urllib3',
         'multiprocessing.spawn', 'multiprocessing.connection', 'kinetics_dance.download.downloader', 'kinetics_dance.loading.store',
         'kinetics_dance.synthetic.uploads', 'kinetics_dance.study.cli']
TORCH = [*LIGHT, 'matplotlib.pyplot', 'torch', 'torchvision', 'fastai.callback.core', 'fastai.learner', 'fastai.vision.core',
         'nbdev.showdoc', 'nbdev.test', 'ipykernel.kernelapp', 'ipykernel.ipkernel', 'papermill', 'seaborn', 'statsmodels.api', 'sphinx.application', 'sphinx.builders.html', 'myst_nb', 'sklearn.linear_model']
DASK = [*LIGHT, 'distributed', 'distributed.cli.dask_worker', 'distributed.cli.dask_scheduler', 'bokeh.server.server', 'kinetics_dance.core.cluster']
KINDS = dict(light=LIGHT, torch=TORCH, dask=DASK)
SEEDS = {'torch': '0'}   # PYTHONHASHSEED: report.run starts its kernels with 0
LOCALE = 'LANG', 'LC_ALL', 'LC_CTYPE'
THREADS = 'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'


# ---- the server

def preload(names):
    import importlib, warnings
    os.environ['YTDLP_NO_PLUGINS'] = '1'        # as the library sets it before it loads yt-dlp
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name in names:
            try: importlib.import_module(name)
            except ImportError: pass            # a package that is not installed: a process that needs it will say so
        # yt-dlp looks through 1,800 patterns for each address and compiles them when it does so first
        from yt_dlp.extractor import gen_extractor_classes
        for extractor in gen_extractor_classes(): extractor.suitable('http://127.0.0.1/x.mp4')


def start(fd, kind):
    "What a server does"
    global STARTED, PATH
    STARTED = dict(os.environ)
    mine = {str(Path(__file__).parent), *os.environ.get('PYTHONPATH', '').split(os.pathsep)}
    PATH = [p for p in sys.path if p and p not in mine]
    if str(ROOT) not in sys.path: sys.path.insert(0, str(ROOT))
    preload(KINDS[kind])
    serve(socket.socket(fileno=fd))


def receive(sock):
    "A request and its file descriptors, or None where nobody asks any more"
    head, fds, _, _ = socket.recv_fds(sock, 8, 64)
    if not head: return None
    need = struct.unpack('q', head)[0]
    body = b''
    while len(body) < need:
        part = sock.recv(need - len(body))
        if not part: return None
        body += part
    return pickle.loads(body), fds


def serve(sock):
    "Fork for each request, until the other end is closed"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.closerange(3, sock.fileno())
    os.closerange(sock.fileno() + 1, 1024)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2): os.dup2(nothing, fd)   # or whoever reads what a process says would wait for us, too
    os.close(nothing)
    while (got := receive(sock)) is not None:
        request, fds = got
        hold, held = os.pipe()
        told, tell = os.pipe()
        middle = os.fork()
        if middle == 0:
            if os.fork(): os._exit(0)
            if request['session']: os.setsid()
            else: os.setpgid(0, request['group'])
            os.write(tell, struct.pack('q', os.getpid()))   # only now: who asked may ask for our group at once
            for fd in (held, told, tell, sock.fileno()): os.close(fd)
            os.read(hold, 1)                                # until we have been adopted
            os.close(hold)
            become(request, fds)
        os.close(tell)
        os.waitpid(middle, 0)
        pid = os.read(told, 8)
        for fd in (hold, held, told, *fds): os.close(fd)
        sock.sendall(pid)
    os._exit(0)


# ---- what a forked process does to be like a new one

def place(fds, numbers):
    "Put file descriptors where they belong"
    import fcntl
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 400) for fd in fds]
    for fd in fds: os.close(fd)
    for fd, to in zip(high, numbers):
        os.dup2(fd, to, inheritable=True)
        os.close(fd)


def set_environment(request):
    env = request['env']
    os.environ.clear()
    os.environ.update(env)
    wanted = next((int(env[k]) for k in THREADS if env.get(k, '').isdecimal()), None)
    if wanted and 'numpy' in sys.modules:
        from threadpoolctl import threadpool_limits
        threadpool_limits(wanted)
        if 'torch' in sys.modules: sys.modules['torch'].set_num_threads(wanted)
    backend = env.get('MPLBACKEND') or ('module://matplotlib_inline.backend_inline' if request['args'][:2] == ['-m', 'ipykernel_launcher'] else '')
    if backend and (mpl := sys.modules.get('matplotlib')): mpl.rcParams['backend'] = backend


def set_streams(direct):
    "Standard streams that know nothing of those of the server; `direct` is Python's -u"
    for fd, name, mode in ((0, 'stdin', 'rb'), (1, 'stdout', 'wb'), (2, 'stderr', 'wb')):
        old, raw = getattr(sys, f'__{name}__'), open(fd, mode, buffering=0 if direct and fd else -1, closefd=False)
        getattr(raw, 'raw', raw).name = f'<{name}>'
        new = io.TextIOWrapper(raw, old.encoding, old.errors, newline=None if fd == 0 else '\n', line_buffering=fd == 2 or os.isatty(fd),
                               write_through=direct and fd > 0)
        new.mode = mode[0]
        setattr(sys, name, new)
        setattr(sys, f'__{name}__', new)


def set_path(request):
    "sys.path as a new process has it, with the PYTHONPATH of its environment"
    mine = [p for p in request['env'].get('PYTHONPATH', '').split(os.pathsep) if p]
    first = {'-c': '', '-m': request['cwd']}.get(request['args'][0], str(Path(request['args'][0]).resolve().parent))
    sys.path[:] = [first, *mine, *[p for p in PATH if p not in mine]]


def become(request, fds):
    "Never returns"
    code = 1
    try:
        os.chdir(request['cwd'])
        place(fds, request['fds'])
        for fd in {0, 1, 2} - set(request['fds']): os.close(fd)
        signal.signal(signal.SIGINT, signal.default_int_handler if request['interrupts'] else signal.SIG_IGN)
        set_environment(request)
        if request['umask'] >= 0: os.umask(request['umask'])
        set_streams(request['direct'])
        servers.clear()
        if request['nested']: nested()
        code = interpret(request)
    except BaseException: traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try: stream.flush()
            except (OSError, ValueError): pass
        os._exit(code)


def interpret(request):
    "Run `-m module …`, `-c code …` or `script …`; the exit status"
    import runpy, warnings
    main, args = sys.modules['__main__'], request['args']
    for key in set(vars(main)) - {'__builtins__'}: del vars(main)[key]
    vars(main).update(__name__='__main__', __spec__=None, __doc__=None, __package__=None, __loader__=None)
    if request['warn']: warnings._processoptions(request['warn'])
    set_path(request)
    try:
        if args[0] == '-m':
            sys.argv = ['-m', *args[2:]]
            package = hasattr(sys.modules.get(args[1]), '__path__')
            sys.modules.pop(f'{args[1]}.__main__' if package else args[1], None)
            runpy._run_module_as_main(args[1])
        elif args[0] == '-c':
            sys.argv = ['-c', *args[2:]]
            exec(compile(args[1], '<string>', 'exec'), vars(main))
        else:
            sys.argv = list(args)
            main.__file__ = os.path.abspath(args[0])
            exec(compile(Path(args[0]).read_bytes(), args[0], 'exec'), vars(main))
        code = 0
    except SystemExit as e: code = exit_status(e.code)
    except KeyboardInterrupt as e:
        sys.excepthook(type(e), e.with_traceback(e.__traceback__.tb_next), None)
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as e:
        sys.excepthook(type(e), e.with_traceback(e.__traceback__.tb_next), None)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    return code


def exit_status(said):
    if said is None or isinstance(said, int): return (said or 0) & 0xff
    print(said, file=sys.stderr)
    return 1


# ---- the process that asks

class Client:
    "The way to a server"
    def __init__(self, sock, environment):
        self.sock, self.environment, self.lock, self.owner = sock, environment, threading.Lock(), os.getpid()

    def ask(self, request, fds):
        "The pid of the new process, which is a child of ours"
        body = pickle.dumps(request)
        with self.lock:
            adopt(True)
            try:
                socket.send_fds(self.sock, [struct.pack('q', len(body))], fds)
                self.sock.sendall(body)
                pid = self.sock.recv(8)
            finally: adopt(False)
        if len(pid) < 8: raise OSError('the server of preloaded processes has ended')
        return struct.unpack('q', pid)[0]

    def fits(self, env):
        "Is what Python reads from the environment when it starts the same? (any seed of hashes will do where none is asked for)"
        if self.owner != os.getpid(): return False      # forked from who may ask: it would not be the parent
        if env.get('PYTHONHASHSEED') not in (None, self.environment.get('PYTHONHASHSEED')): return False
        keys = {k for k in {**env, **self.environment} if k.startswith('PYTHON') or k in LOCALE}
        return all(env.get(k) == self.environment.get(k) for k in keys - {'PYTHONPATH', 'PYTHONWARNINGS', 'PYTHONHASHSEED'})


def adopt(yes):
    "Whether orphans below this process become its children"
    ctypes.CDLL(None).prctl(36, int(yes), 0, 0, 0)


servers, starting = {}, threading.Lock()
on = sys.platform == 'linux' and os.environ.get('PRELOADED') != '0'


def client(kind):
    "The way to the server of a kind, which starts when it is first asked for"
    with starting:
        if kind not in servers:
            ours, theirs = socket.socketpair()
            env = {'OPENBLAS_NUM_THREADS': '1'} | {k: v for k, v in os.environ.items() if k != 'MPLBACKEND'} | ({'PYTHONHASHSEED': SEEDS[kind]} if kind in SEEDS else {})
            code = (f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import preloaded; '
                    f'preloaded.start({theirs.fileno()}, {kind!r})')
            subprocess.Popen([sys.executable, '-c', code], pass_fds=[theirs.fileno()], env=env, cwd=ROOT, stdin=subprocess.DEVNULL)
            theirs.close()
            servers[kind] = Client(ours, env)
        return servers[kind]


def nested():
    "Give a forked process a server of its own, forked from it: for the processes and the kernels that it starts"
    global on
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        serve(theirs)
    theirs.close()
    on = True
    for kind in KINDS: servers[kind] = Client(ours, STARTED)
    spawn()
    subprocess.Popen = Popen
    if launcher := sys.modules.get('jupyter_client.launcher'): launcher.Popen = Popen      # it has the name already


def understood(args):
    "(options of -W, whether -u, the rest) of a command line of this interpreter, or None"
    args = [os.fsdecode(a) if isinstance(a, (bytes, os.PathLike)) else str(a) for a in args]
    if not args or args[0] != sys.executable: return None
    args, warn, direct = args[1:], [], False
    while args and args[0].startswith('-') and args[0] not in ('-m', '-c'):
        if args[0] == '-W' and len(args) > 1: warn, args = [*warn, args[1]], args[2:]
        elif args[0].startswith('-W'): warn, args = [*warn, args[0][2:]], args[1:]
        elif args[0] == '-B' and sys.dont_write_bytecode: args = args[1:]
        elif args[0] == '-u': args, direct = args[1:], True
        else: return None
    return (warn, direct, args) if args and (args[0] not in ('-m', '-c') or len(args) > 1) else None


def begin(args, env, cwd, numbers, fds, kind, inner, session=False, umask=-1, interrupts=None):
    "The pid of a preloaded process that runs a command, or None where it takes a new one"
    found, env = understood(args), dict(os.environ if env is None else env)
    env = {os.fsdecode(k): os.fsdecode(v) for k, v in env.items()}
    cwd = os.getcwd() if cwd is None else os.path.abspath(cwd)
    if not on or not found or not os.path.isdir(cwd) or not (server := client(kind)).fits(env): return None
    warn, direct, rest = found
    warn = [*filter(None, env.get('PYTHONWARNINGS', '').split(',')), *warn]
    if interrupts is None: interrupts = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    if rest[0] not in ('-m', '-c') and not os.path.isfile(os.path.join(cwd, rest[0])): return None
    request = dict(args=rest, warn=warn, direct=direct, env=env, cwd=cwd, fds=numbers, nested=inner, session=session, umask=umask, group=os.getpgid(0), interrupts=interrupts)
    return server.ask(request, fds)


class Popen(subprocess.Popen):
    """As that of subprocess. `libraries` says which server has what the process needs; `interrupts`, whether Ctrl-C ends it also where
    ours ignores it, as jobs do that a shell put into the background"""
    def __init__(self, args, *more, libraries='torch', interrupts=None, **kw):
        self.libraries, self.interrupts = libraries, interrupts
        if interrupts and (not on or not understood(args)): kw['preexec_fn'] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        super().__init__(args, *more, **kw)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
                       p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask, start_new_session, *more):
        plain = not (executable or preexec_fn or shell or gid or gids or uid or isinstance(args, (str, bytes))) and close_fds
        fds = [p2cread if p2cread >= 0 else 0, c2pwrite if c2pwrite >= 0 else 1, errwrite if errwrite >= 0 else 2, *pass_fds]
        pid = plain and begin(args, env, cwd, [0, 1, 2, *pass_fds], fds, self.libraries, True, start_new_session, umask, self.interrupts)
        if not pid:
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, p2cread, p2cwrite,
                                          c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask, start_new_session, *more)
        self.pid, self._child_created = pid, True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def run(args, *, input=None, capture_output=False, timeout=None, check=False, **kw):
    "As that of subprocess; `libraries` as of Popen"
    if capture_output: kw.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if input is not None: kw['stdin'] = subprocess.PIPE
    with Popen(args, **kw) as p:
        try: out, err = p.communicate(input, timeout=timeout)
        except BaseException:
            p.kill()
            raise
    done = subprocess.CompletedProcess(p.args, p.returncode, out, err)
    if check: done.check_returncode()
    return done


def spawn():
    "From now on multiprocessing starts its processes here"
    from multiprocessing import util
    if hasattr(util.spawnv_passfds, 'new'): return
    new = util.spawnv_passfds
    def passing(path, args, fds):
        fds = sorted(map(int, fds))
        pid = '--multiprocessing-fork' in args and begin(args, None, None, [0, 1, 2, *fds], [0, 1, 2, *fds], 'light', False)
        return pid or new(path, args, fds)
    passing.new = new
    util.spawnv_passfds = passing
