"""Python processes that have the large libraries already: imported once, then forked.

A test gets all that a new process has (arguments, environment, folder, open files, signals, exit
status, a parent that can wait for it), but the seconds that importing pandas or torch takes are
paid once per run of the tests and not once per process.

`Popen` and `run` stand for those of `subprocess`; after `spawn()`, `multiprocessing` starts its
processes so. What cannot be had this way (another interpreter, other flags, variables that Python
reads when it starts) gets a true new process. So does everything on a system other than Linux, in
tests that are marked `new_processes`, and where PRELOADED=0 says so.

A request goes to a server, a child of the process that asks. The server forks twice, and the
process in the middle ends, so that whoever asked inherits the new one (PR_SET_CHILD_SUBREAPER): it
can wait for it, signal it and find it among its children."""
import atexit, ctypes, fcntl, importlib, io, os, pickle, runpy, signal, socket, struct, subprocess
import sys, threading, traceback, warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIGHT = ['numpy', 'pandas', 'pyarrow.parquet', 'av', 'PIL.Image', 'imageio_ffmpeg', 'pebble',
         'urllib3', 'yt_dlp.extractor.generic', 'yt_dlp_ejs.yt', 'multiprocessing.spawn',
         'multiprocessing.connection', 'kinetics_dance.download.downloader',
         'kinetics_dance.loading.store', 'kinetics_dance.synthetic.uploads',
         'kinetics_dance.study.cli']
TORCH = [*LIGHT, 'matplotlib.pyplot', 'torch', 'torchvision', 'fastai.learner',
         'fastai.vision.core', 'fastai.callback.core', 'nbdev.showdoc', 'nbdev.test', 'ipykernel.kernelapp',
         'ipykernel.ipkernel', 'papermill', 'seaborn', 'statsmodels.api', 'sklearn.linear_model',
         'sphinx.application', 'sphinx.builders.html', 'myst_nb']
DASK = [*LIGHT, 'distributed', 'distributed.cli.dask_worker', 'distributed.cli.dask_scheduler',
        'bokeh.server.server', 'kinetics_dance.core.cluster']
KINDS = dict(light=LIGHT, torch=TORCH, dask=DASK)
SEEDS = {'torch': '0'}      # PYTHONHASHSEED: report.run starts its kernels with 0
LOCALE = {'LANG', 'LC_ALL', 'LC_CTYPE'}
THREADS = 'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'
INLINE = 'module://matplotlib_inline.backend_inline'


# ---- the server

def preload(names):
    "Import what the forked processes will need"
    os.environ['YTDLP_NO_PLUGINS'] = '1'        # as the library sets it before it loads yt-dlp
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name in names:
            try: importlib.import_module(name)
            except ImportError: pass            # a process that needs it will say so
        # yt-dlp compiles 1,800 patterns when it looks for the first time whose address one is
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
    need, body = struct.unpack('q', head)[0], b''
    while len(body) < need:
        part = sock.recv(need - len(body))
        if not part: return None
        body += part
    return pickle.loads(body), fds


def serve(sock):
    "Fork for each request, until the other end is closed; never returns"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.closerange(3, sock.fileno())
    os.closerange(sock.fileno() + 1, 1024)
    nothing = os.open(os.devnull, os.O_RDWR)
    # or whoever reads what a process says would wait for us, too
    for fd in (0, 1, 2): os.dup2(nothing, fd)
    os.close(nothing)
    while (got := receive(sock)) is not None: fork(sock, *got)
    os._exit(0)


def fork(sock, request, fds):
    "Start a process, and answer with its pid when it has been adopted"
    hold, held = os.pipe()
    told, tell = os.pipe()
    middle = os.fork()
    if middle == 0:
        if os.fork(): os._exit(0)
        if request['session']: os.setsid()
        else: os.setpgid(0, request['group'])
        # only now: who asked may ask for our group at once
        os.write(tell, struct.pack('q', os.getpid()))
        for fd in (held, told, tell, sock.fileno()): os.close(fd)
        os.read(hold, 1)                        # until we have been adopted
        os.close(hold)
        become(request, fds)
    os.close(tell)
    os.waitpid(middle, 0)
    pid = os.read(told, 8)
    for fd in (hold, held, told, *fds): os.close(fd)
    sock.sendall(pid)


# ---- what a forked process does to be like a new one

def become(request, fds):
    "Never returns"
    code = 1
    try:
        os.chdir(request['cwd'])
        place(fds, request['fds'])
        if request['umask'] >= 0: os.umask(request['umask'])
        interrupt = signal.default_int_handler if request['interrupts'] else signal.SIG_IGN
        signal.signal(signal.SIGINT, interrupt)
        set_environment(request['env'], request['args'])
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


def place(fds, numbers):
    "Put file descriptors where they belong"
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 400) for fd in fds]
    for fd in fds: os.close(fd)
    for fd, to in zip(high, numbers):
        os.dup2(fd, to, inheritable=True)
        os.close(fd)


def set_environment(env, args):
    "The environment, and what libraries would have read from it when they were imported"
    os.environ.clear()
    os.environ.update(env)
    wanted = next((int(env[k]) for k in THREADS if env.get(k, '').isdecimal()), None)
    if wanted:
        from threadpoolctl import threadpool_limits
        threadpool_limits(wanted)
        if 'torch' in sys.modules: sys.modules['torch'].set_num_threads(wanted)
    if kernel := sys.modules.get('ipykernel.kernelapp'):
        set_default(kernel.IPKernelApp, 'parent_handle', int(env.get('JPY_PARENT_PID') or 0))
    backend = env.get('MPLBACKEND') or (INLINE if args[:2] == ['-m', 'ipykernel_launcher'] else '')
    # it asks which shell it is in when it is imported
    sys.modules.pop('matplotlib_inline.backend_inline', None)
    if backend and 'matplotlib' in sys.modules:
        sys.modules['matplotlib'].rcParams['backend'] = backend


def set_default(cls, name, value):
    "A default that a class of traitlets took from the environment when it was imported"
    getattr(cls, name).default_value = value
    if name in (kept := getattr(cls, '_static_immutable_initial_values', {})): kept[name] = value


def set_streams(direct):
    "Standard streams that know nothing of those of the server; `direct` is Python's -u"
    for fd, name, mode in ((0, 'stdin', 'rb'), (1, 'stdout', 'wb'), (2, 'stderr', 'wb')):
        old, direct_ = getattr(sys, f'__{name}__'), direct and fd > 0
        raw = open(fd, mode, buffering=0 if direct_ else -1, closefd=False)
        getattr(raw, 'raw', raw).name = f'<{name}>'
        new = io.TextIOWrapper(raw, old.encoding, old.errors, newline='\n' if fd else None,
                               line_buffering=fd == 2 or os.isatty(fd), write_through=direct_)
        new.mode = mode[0]
        setattr(sys, name, new)
        setattr(sys, f'__{name}__', new)


def set_path(request):
    "sys.path as a new process has it, with the PYTHONPATH of its environment"
    first = {'-c': '', '-m': request['cwd']}.get(what := request['args'][0])
    if first is None: first = str(Path(what).resolve().parent)
    mine = [p for p in request['env'].get('PYTHONPATH', '').split(os.pathsep) if p]
    sys.path[:] = [*([] if sys.flags.safe_path else [first]), *mine, *(p for p in PATH if p not in mine)]


def interpret(request):
    "Run `-m module …`, `-c code …` or `script …`; the exit status"
    main, code = sys.modules['__main__'], 0
    for key in set(vars(main)) - {'__builtins__'}: del vars(main)[key]
    nothing = dict.fromkeys(('__spec__', '__doc__', '__package__', '__loader__'))
    vars(main).update(nothing, __name__='__main__')
    if request['warn']: warnings._processoptions(request['warn'])
    set_path(request)
    try: execute(request['args'], main)
    except SystemExit as e: code = exit_status(e.code)
    except BaseException as e:
        sys.excepthook(type(e), e.with_traceback(e.__traceback__.tb_next.tb_next), None)
        code = 1
        if isinstance(e, KeyboardInterrupt):    # as Python ends then
            sys.stderr.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    threading._shutdown()
    atexit._run_exitfuncs()
    return code


def execute(args, main):
    "The code itself, in the module `__main__`"
    if args[0] == '-m':
        sys.argv = ['-m', *args[2:]]
        package = hasattr(sys.modules.get(args[1]), '__path__')
        sys.modules.pop(f'{args[1]}.__main__' if package else args[1], None)
        runpy._run_module_as_main(args[1])
    elif args[0] == '-c':
        sys.argv = ['-c', *args[2:]]
        exec(compile(args[1], '<string>', 'exec'), vars(main))
    else:
        sys.argv, main.__file__ = list(args), os.path.abspath(args[0])
        exec(compile(Path(args[0]).read_bytes(), args[0], 'exec'), vars(main))


def exit_status(said):
    "What `sys.exit` makes of its argument"
    if said is None or isinstance(said, int): return (said or 0) & 0xff
    print(said, file=sys.stderr)
    return 1


# ---- the process that asks

class Client:
    "The way to a server"
    def __init__(self, sock, environment):
        self.sock, self.environment = sock, environment
        self.lock, self.owner = threading.Lock(), os.getpid()

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
        "Is what Python reads from the environment when it starts the same?"
        if self.owner != os.getpid(): return False      # a fork of who may ask would be no parent
        mine, seed = self.environment, env.get('PYTHONHASHSEED')
        if seed is not None and seed != mine.get('PYTHONHASHSEED'): return False
        return at_start({**env, 'PYTHONHASHSEED': ''}) == at_start({**mine, 'PYTHONHASHSEED': ''})


def at_start(env):
    "What Python reads of an environment when it starts, but for what a forked process can take over"
    return {k: v for k, v in env.items() if (k.startswith('PYTHON') or k in LOCALE)
            and k not in ('PYTHONPATH', 'PYTHONWARNINGS')}


def adopt(yes):
    "Whether orphans below this process become its children"
    ctypes.CDLL(None).prctl(36, int(yes), 0, 0, 0)


servers, starting = {}, threading.Lock()
on = sys.platform == 'linux' and os.environ.get('PRELOADED') != '0'


def client(kind):
    "The way to the server of a kind, which starts when it is first asked for"
    with starting:
        if kind in servers: return servers[kind]
        ours, theirs = socket.socketpair()
        env = {'OPENBLAS_NUM_THREADS': '1', **os.environ}
        env.pop('MPLBACKEND', None)
        if kind in SEEDS: env['PYTHONHASHSEED'] = SEEDS[kind]
        code = (f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); '
                f'import preloaded; preloaded.start({theirs.fileno()}, {kind!r})')
        subprocess.Popen([sys.executable, '-c', code], pass_fds=[theirs.fileno()], env=env,
                         cwd=ROOT, stdin=subprocess.DEVNULL)
        theirs.close()
        servers[kind] = Client(ours, env)
        return servers[kind]


def nested():
    "Give a forked process a server that is forked from it: what it starts is preloaded, too"
    global on
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        serve(theirs)
    theirs.close()
    on = True
    one = Client(ours, STARTED)
    servers.update(dict.fromkeys(KINDS, one))
    spawn()
    subprocess.Popen = Popen
    if launcher := sys.modules.get('jupyter_client.launcher'): launcher.Popen = Popen


def same_anyway():
    "Flags that say of a child what our own flags and environment say of us and of the server"
    flags = {'-B': sys.dont_write_bytecode, '-s': sys.flags.no_user_site, '-P': sys.flags.safe_path}
    return {name for name, on in flags.items() if on}


def understood(args):
    "(options of -W, whether -u, the rest) of a command line of this interpreter, or None"
    args = [os.fsdecode(a) if isinstance(a, (bytes, os.PathLike)) else str(a) for a in args]
    if not args or args[0] != sys.executable: return None
    args, warn, direct = args[1:], [], False
    while args and args[0].startswith('-') and args[0] not in ('-m', '-c'):
        flag = args.pop(0)
        if flag == '-W' and args: warn.append(args.pop(0))
        elif flag.startswith('-W'): warn.append(flag[2:])
        elif flag == '-u': direct = True
        elif flag not in same_anyway(): return None
    if not args or args[0] in ('-m', '-c') and len(args) < 2: return None
    return warn, direct, args


def begin(args, env, cwd, fds, kind, **how):
    """The pid of a preloaded process that runs a command, or None where it takes a new one.
    `fds`: {number there: file descriptor here}"""
    found = understood(args)
    env = {os.fsdecode(k): os.fsdecode(v) for k, v in (os.environ if env is None else env).items()}
    cwd = os.getcwd() if cwd is None else os.path.abspath(cwd)
    if not on or not found or not os.path.isdir(cwd) or not client(kind).fits(env): return None
    warn, direct, args = found
    if args[0] not in ('-m', '-c') and not os.path.isfile(os.path.join(cwd, args[0])): return None
    request = dict(args=args, env=env, cwd=cwd, fds=list(fds), direct=direct, group=os.getpgid(0),
                   warn=[*filter(None, env.get('PYTHONWARNINGS', '').split(',')), *warn],
                   interrupts=signal.getsignal(signal.SIGINT) != signal.SIG_IGN,
                   nested=False, session=False, umask=-1)
    return client(kind).ask(request | how, list(fds.values()))


class Popen(subprocess.Popen):
    """As that of subprocess. `libraries` says which server has what the process needs; `interrupts`,
    whether Ctrl-C ends it also where we ignore it, as jobs in the background of a shell do"""
    def __init__(self, args, *more, libraries='torch', interrupts=False, **kw):
        self.libraries, self.interrupts = libraries, interrupts
        if interrupts and not on:
            kw['preexec_fn'] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        super().__init__(args, *more, **kw)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more):
        (startupinfo, creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
         restore_signals, gid, gids, uid, umask, start_new_session, *group) = more
        pid = None
        special = executable or preexec_fn or shell or gid or gids or uid or not close_fds
        if not special and not isinstance(args, (str, bytes, os.PathLike)):
            fds = {0: p2cread, 1: c2pwrite, 2: errwrite} | {fd: fd for fd in pass_fds}
            fds = {to: to if fd < 0 else fd for to, fd in fds.items()}
            how = dict(interrupts=True) if self.interrupts else {}
            pid = begin(args, env, cwd, fds, self.libraries, nested=True,
                        session=start_new_session, umask=umask, **how)
        if pid is None:
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd,
                                          env, *more)
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
        pid = None
        if '--multiprocessing-fork' in args:
            pid = begin(args, None, None, {fd: fd for fd in {0, 1, 2, *map(int, fds)}}, 'light')
        return new(path, args, fds) if pid is None else pid
    passing.new = new
    util.spawnv_passfds = passing
