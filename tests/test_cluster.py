"""Many machines: workers that are killed, cut off, unfit, silent or full, a driver and a scheduler that are killed, and storage that is no folder."""
import inspect, itertools, os, shutil, signal, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
import pandas as pd, pytest
pytest.importorskip('distributed', reason="needs kinetics_dance[cluster]")
import psutil
import preloaded
from conftest import ROOT, things
from faults import Faults
from kinetics_dance.core import cluster, storage
from kinetics_dance.loading.reader import FrameStore
from kinetics_dance.core.cluster import workers
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.core.base import StudyError
from kinetics_dance.download.downloader import download
from kinetics_dance.loading.store import build_store
from kinetics_dance.download.sources import is_final
from kinetics_dance.video.decoding import numbered_clip
from kinetics_dance.video.encoding import file_digest

N, SOON = 24, 30 # clips; seconds in which trouble must be said, from when it could be seen
NAMES = [f'upload_{i:04}' for i in range(N)]
HOW = dict(short_side=48, wait=.05, timeout=60)


@pytest.fixture(scope='module')
def upload(tmp_path_factory): return numbered_clip(tmp_path_factory.mktemp('upload')/'u.mp4', n=45, fps=15, size=(48, 64))


def table_in(folder, upload, n=N):
    "A table of clips of a file that lies here; without `upload`, of videos on a platform"
    t = ClipTable(folder/'clips.sqlite')
    t.set(pd.DataFrame([dict(label='tango dancing', youtube_id=i, time_start=0., time_end=2., split='train', source='folder' if upload else 'youtube',
                             url=str(upload) if upload else None) for i in NAMES[:n]]))
    return t


def state(folder):
    "Table and files; times and the number of attempts tell the history, which may differ"
    t = ClipTable(folder/'clips.sqlite').frame().drop(columns=['updated', 'attempts', 'source', 'url', 'made_of'])
    files = {p.name: p.read_bytes() for p in sorted(things(folder/'videos'))}
    return t.to_json(), files


@pytest.fixture(scope='module')
def alone(upload, tmp_path_factory):
    "What one machine makes, without any of this"
    f = tmp_path_factory.mktemp('alone')
    out = download(table_in(f, upload), f, **HOW)
    assert (out.status == 'ok').all()
    build_store(out, f/'frames', n_frames=4, size=(24, 32), log=lambda line: None)
    return f


def frames_of(folder): return {p.name: p.read_bytes() for p in sorted(things(folder))}


class News(list):
    "Lines of news, and how long after the first look each came"
    def __init__(self): self.start, self.at = time.monotonic(), []
    def __call__(self, line):
        self.append(line)
        self.at.append(time.monotonic() - self.start)
    def when(self, text):
        at = [t for line, t in zip(self, self.at) if text in line]
        assert len(at) == 1, (text, self)
        return at[0]


@contextmanager
def dask(folder, *kinds, tmp=None, scheduler=''):
    "A scheduler and workers as processes of their own, all awake; a kind is (Python to run in it first, wrapper of the command)"
    env = os.environ | dict(DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL='20s', OMP_NUM_THREADS='1', DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED='False')
    file, started = folder/'scheduler.json', []
    def start(*command, **more):
        started.append(preloaded.Popen([str(c) for c in command], libraries='dask', cwd=folder, env=env | more, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True))
        return started[-1]
    try:
        (folder/'first.py').write_text(scheduler)
        start(sys.executable, '-m', 'dask', 'scheduler', '--host', '127.0.0.1', '--port', 0, '--dashboard-address', '127.0.0.1:0', '--scheduler-file', file, '--preload', folder/'first.py')
        for i, (first, wrap) in enumerate(kinds):
            (folder/f'first{i}.py').write_text(first)
            start(*wrap, sys.executable, '-m', 'dask', 'worker', '--scheduler-file', file, '--host', '127.0.0.1', '--nthreads', 1, '--name', f'kind{i}', '--no-dashboard',
                  '--memory-limit', 0, '--preload', folder/f'first{i}.py', *(['--no-nanny'] if first or wrap else []), **(tmp or {}).get(i, {}))
        limit = time.monotonic() + 150
        while not file.exists() and time.monotonic() < limit: time.sleep(.05)
        from distributed import Client
        if kinds:
            with Client(scheduler_file=str(file), timeout=30) as c:
                c.wait_for_workers(len(kinds), timeout=60)
                c.run(exec, 'import kinetics_dance.core.cluster', on_error='return') # how long that takes is the test machine's affair
        yield file
    finally:
        for p in started: # each with all that it has started, also where that is orphaned by now
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()


class Here:
    "The workers of this process: what memory:// can be seen by"
    here = True
    def __init__(self): self.pool = ThreadPoolExecutor(1)
    def schedule(self, fn, args=(), kwargs=None, timeout=None): return self.pool.submit(fn, *args, **(kwargs or {}))
    def room(self): return 2
    def stop(self): pass


def test_workers_killed_and_cut_off(upload, alone, tmp_path, monkeypatch):
    "One is killed in the middle of its work, one does not move any more: the same files as one machine makes, and no more than two clips a worker"
    news, most = [], []
    monkeypatch.setattr(cluster, '_SILENT', '6s')
    with workers('local:3', tmp_path, log=news.append, patience=150) as pool:
        assert '3 workers' in news[-1] and 'dashboard at http://' in news[-1]
        pids = list(pool.client.run(os.getpid).values())
        out, done = [], lambda: len(list((tmp_path/'videos').glob('[!.]*.mp4'))) if (tmp_path/'videos').exists() else 0
        run = threading.Thread(target=lambda: out.append(download(table_in(tmp_path, upload), tmp_path, pool=pool, **HOW)), daemon=True)
        run.start()
        try:
            for pid, sign, goal in ((pids[0], signal.SIGKILL, 3), (pids[1], signal.SIGSTOP, 8)):
                while done() < goal and run.is_alive():
                    most += [len(k) for k in pool.client.processing().values()]
                    time.sleep(.02)
                assert run.is_alive()
                os.kill(pid, sign)
            run.join(200)
            assert out, 'it hangs'
        finally:
            with suppress(ProcessLookupError): os.kill(pids[1], signal.SIGCONT)
        made = build_store(out[0], tmp_path/'frames', n_frames=4, size=(24, 32), log=lambda line: None, pool=pool)
    assert (made.status == 'ok').all() and (out[0].status == 'ok').all()
    assert state(tmp_path) == state(alone) and frames_of(tmp_path/'frames') == frames_of(alone/'frames')
    assert max(most) <= 2 and sum(most), most


DRIVER = """
import itertools, os, signal, sys, time
from pathlib import Path
from kinetics_dance.core.cluster import Workers, workers
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.core.base import StudyError
from kinetics_dance.download.downloader import download
folder, scheduler, goal, victim, timeout, patience = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
came, schedule = itertools.count(1), Workers.schedule
def log(line): print(time.monotonic(), line, flush=True)
def kill(job):
    if next(came) == goal:
        log('kill')
        os.kill(victim or os.getpid(), signal.SIGKILL)
def until(self, *args, **kwargs):
    job = schedule(self, *args, **kwargs)
    job.add_done_callback(kill)
    return job
Workers.schedule = until
if __name__ == '__main__':
    log('begin')
    try:
        with workers(scheduler, folder, log, timeout=timeout, patience=patience) as pool:
            download(ClipTable(folder/'clips.sqlite'), folder, pool=pool, short_side=48, wait=.05, timeout=60)
    except StudyError as e: sys.exit(str(e))
"""


def drive(folder, file, goal, victim=0, timeout=60, patience=150):
    "Download as a process of its own, which kills itself, or `victim`, once `goal` jobs have come back: (exit status, News, lines of its stderr)"
    (file.parent/'driver.py').write_text(DRIVER)
    p = preloaded.run([sys.executable, *map(str, (file.parent/'driver.py', folder, file, goal, victim, timeout, patience))], libraries='dask', capture_output=True, text=True, timeout=300)
    news, lines = News(), [line.split(' ', 1) for line in p.stdout.splitlines()]
    news.start = float(lines[0][0])
    for at, text in lines: news.append(text), news.at.append(float(at) - news.start)
    return p.returncode, news, p.stderr.splitlines()


def test_the_driver_is_killed_and_unfit_workers_get_nothing(upload, alone, tmp_path):
    "A real cluster: one good worker, others of another version, without a decoder, without the shared folder, without decord"
    f = tmp_path/'shared'
    f.mkdir()
    table_in(f, upload)
    hide = ['unshare', '-m', 'sh', '-c', f'mount -t tmpfs none {f} && exec "$@"', 'sh']
    blind = not subprocess.run([*hide, 'true'], capture_output=True).returncode
    kinds = [('', []), ("import kinetics_dance; kinetics_dance.__version__ = '0.0.9'", []), ("import sys; sys.modules['av'] = None", []),
             ("import sys; sys.modules['decord'] = None", [])] + ([('', hide)] if blind else [])
    with dask(tmp_path, *kinds) as file:
        for goal in (1, 9):
            status, _, err = drive(f, file, goal)
            assert status == -signal.SIGKILL and not err, err
        assert 0 < len(list(f.glob('videos/[!.]*.mp4'))) < N
        news = News()
        with workers(str(file), f, log=news, patience=150) as pool:
            assert len(pool.fit) == 2, news
            # what is left of the driver that was killed may still be writing; it is not in the way
            out = download(ClipTable(f/'clips.sqlite'), f, pool=pool, **HOW)
            other = build_store(out, f/'frames', n_frames=4, size=(24, 32), log=lambda line: None, pool=pool)
    assert (out.status == 'ok').all() and (other.status == 'ok').all() and state(f) == state(alone) and frames_of(f/'frames') == frames_of(alone/'frames')
    said = [line for line in news if line.startswith('worker ')]
    for why in ('has kinetics_dance 0.0.9 and not', 'has no decoder', 'has no decord: it reads with PyAV', *(['does not see or cannot write'] if blind else [])):
        assert sum(why in line for line in said) == 1, (why, news)
    assert len(said) == len(kinds) - 1 and not any('\n' in line for line in news) and max(news.at) < SOON, (news, news.at)
    assert not [p for p in f.iterdir() if p.name.startswith('.probe')]


def test_a_silent_worker_and_the_scheduler_is_killed(upload, alone, tmp_path):
    "One line each, soon; what is done is kept, and the same line goes on from there: here without a cluster"
    f, usual, more = tmp_path/'shared', inspect.signature(workers).parameters, 7
    f.mkdir()
    table_in(f, upload)
    with dask(tmp_path, ('', []), ('', [])) as file:
        from distributed import Client
        with Client(scheduler_file=str(file)) as c: scheduler, pids = c.run_on_scheduler(os.getpid), list(c.run(os.getpid).values())
        os.kill(pids[0], signal.SIGSTOP)
        status, news, err = drive(f, file, 9, scheduler, timeout=5, patience=8)
        ended = time.monotonic()
    assert status == 1 and err == ['scheduler: it went away; what is done is kept, and the same line goes on from here'], (err, news)
    # shorter times are given here than one has without: what comes on top of them counts
    assert max(usual[k].default for k in ('timeout', 'patience')) + more <= SOON
    assert news.when('does not answer; it gets no clips') < 8 + more and ended - news.start - news.when('kill') < 8 + more, (news, news.at)
    clips = ClipTable(f/'clips.sqlite').frame()
    ok = clips[clips.status == 'ok']
    assert 0 < len(ok) < N and [file_digest(f/p) for p in ok.path] == ok[['bytes', 'sha256']].to_dict('records')
    assert not [r for r in clips.reason.dropna() if is_final(r)] and not (clips.status == 'failed').any()
    again = download(ClipTable(f/'clips.sqlite'), f, **HOW)
    assert (again.status == 'ok').all() and state(f) == state(alone) and again.attempts[ok.index].tolist() == ok.attempts.tolist()


def test_the_scheduler_is_killed_when_all_frames_are_handed_out(alone, tmp_path, monkeypatch, capfd):
    "Nothing is known of what was out: no clip is called bad for it, and the same line goes on"
    f = tmp_path/'shared'
    shutil.copytree(alone/'videos', f/'videos')
    clips, lines, came, schedule = ClipTable(alone/'clips.sqlite').frame(), [], itertools.count(1), cluster.Workers.schedule
    with dask(tmp_path, ('', [])) as file:
        from distributed import Client
        with Client(scheduler_file=str(file)) as c: scheduler = c.run_on_scheduler(os.getpid)
        def until(self, *args, **kwargs):
            job = schedule(self, *args, **kwargs)
            if next(came) == N: os.kill(scheduler, signal.SIGKILL)
            return job
        monkeypatch.setattr(cluster.Workers, 'schedule', until)
        start = time.monotonic()
        with pytest.raises(StudyError, match='scheduler: it (went away|does not answer any more); what is done is kept') as e:
            with workers(str(file), f, log=lines.append, ahead=N, timeout=5, patience=8) as pool:
                build_store(clips, f/'frames', n_frames=4, size=(24, 32), log=lambda line: None, pool=pool)
    assert '\n' not in str(e.value) and time.monotonic() - start < SOON and next(came) > N
    assert not (f/'frames/index.parquet').exists()
    said = capfd.readouterr().err
    assert 'Traceback' not in said, said
    again = build_store(clips, f/'frames', n_frames=4, size=(24, 32), log=lambda line: None)
    assert (again.status == 'ok').all() and frames_of(f/'frames') == frames_of(alone/'frames')


def test_a_scheduler_of_another_version(tmp_path):
    other = 'import distributed.node as n, distributed.versions as v\nn.get_versions = lambda packages=None: (x := v.get_versions(packages), x["packages"].update(distributed="2024.1.0"))[0]'
    with dask(tmp_path, scheduler=other) as file:
        start = time.monotonic()
        with pytest.raises(StudyError, match='has distributed 2024.1.0 and not .*; install the same here and there') as e:
            with workers(str(file), tmp_path, timeout=60): pass
    assert '\n' not in str(e.value) and time.monotonic() - start < SOON


def test_a_scheduler_with_certificates(tmp_path):
    "Encrypted, as the page on clusters advises; who has no certificate is told so"
    import math, dask
    from distributed import LocalCluster, Security
    security = Security.temporary()
    keys = {'ca-file': security.tls_ca_file, 'client.cert': security.tls_client_cert, 'client.key': security.tls_client_key}
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol='tls://', security=security, silence_logs=50) as c:
        with pytest.raises(StudyError, match=r'^scheduler: tls://127.0.0.1:\d+ cannot be used \(.*TLS configuration'):
            with workers(c.scheduler_address, tmp_path): pass
        with dask.config.set({f'distributed.comm.tls.{k}': v for k, v in keys.items()}), workers(c.scheduler_address, tmp_path, log=(news := []).append) as pool:
            assert pool.schedule(math.sqrt, (9,)).result(60) == 3
    assert len(news) == 1 and '1 worker with 1 thread;' in news[0], news


def test_one_worker_with_a_full_disk(upload, alone, tmp_path):
    "It is full when the work has begun"
    f, small, news = tmp_path/'shared', tmp_path/'small', News()
    f.mkdir(), small.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=300k', 'none', small], capture_output=True).returncode: pytest.skip('no right to mount a small disk here')
    try:
        with dask(tmp_path, ('', []), ('', []), tmp={0: dict(TMPDIR=str(small))}) as file, Faults({f'/{n}.mp4': upload for n in NAMES}) as s:
            with workers(str(file), f, log=news, patience=150) as pool:
                how = HOW | dict(url_template=s.template(), pool=pool, settings=dict(sleep=0, retries=1))
                assert (download(table_in(f, None, 4), f, **how).status == 'ok').all()
                (small/'fill').write_bytes(bytes(max(0, 4096*(psutil.disk_usage(small).free//4096 - 1))))
                news.start = time.monotonic()
                out = download(table_in(f, None), f, **how)
            assert (out.status == 'ok').all() and 0 < news.when('no room left on its disk') < SOON and not any('\n' in line for line in news), (news, news.at, out.reason.tolist())
            assert state(f) == state(alone)
    finally: subprocess.run(['umount', '-l', small])


@pytest.mark.parametrize('where, why', [('tcp://127.0.0.1:9', 'does not answer within 1 s'), ('127.0.0.1:9', 'does not answer within 1 s'), ('local:0', 'no worker at all'),
                                        ('local', 'there is no such file'), ('nowhere.json', 'there is no such file')])
def test_no_scheduler(tmp_path, where, why):
    start = time.monotonic()
    with pytest.raises(StudyError, match=why) as e:
        with workers(where, tmp_path, timeout=1): pass
    assert '\n' not in str(e.value) and time.monotonic() - start < 30


def test_what_takes_the_call_is_no_scheduler(tmp_path):
    "A port that somebody else has, or a scheduler that hangs: nothing ever comes back"
    said = []
    def look():
        try:
            with workers(f'tcp://127.0.0.1:{s.getsockname()[1]}', tmp_path, timeout=1): pass
        except StudyError as e: said.append(str(e))
    with socket.create_server(('127.0.0.1', 0)) as s:
        t = threading.Thread(target=look, daemon=True)
        t.start()
        t.join(SOON)
        assert said and 'does not answer within 1 s' in said[0] and '\n' not in said[0]
    (tmp_path/'other.json').write_text('{}')
    with pytest.raises(StudyError, match="cannot be used .KeyError: 'address'"):
        with workers(str(tmp_path/'other.json'), tmp_path, timeout=1): pass


def test_one_transfer_is_not_for_a_bucket_and_workers_elsewhere(tmp_path):
    "Its clips would lie on the disk of this machine: said before a byte is asked for"
    class Elsewhere(Here): here = False
    t = ClipTable(tmp_path/'clips.sqlite')
    t.set(pd.DataFrame([dict(label='tango dancing', youtube_id='a'*11, time_start=0., time_end=2., split='train', source='cvdf', url='train/k700_train_032.tar.gz')]))
    with pytest.raises(StudyError, match='source cvdf: its clips come in one transfer, and workers elsewhere cannot see where it ends up') as e:
        download(t, tmp_path, storage=f'memory://{tmp_path.name}', pool=Elsewhere(), settings=dict(base='http://127.0.0.1:9'), **HOW)
    assert '\n' not in str(e.value) and t.frame().status.tolist() == ['pending']


def test_the_command_line_says_it_in_one_line(tmp_path):
    (tmp_path/'mine').mkdir()
    for k in range(12):
        for label in ('a', 'b'):
            (tmp_path/'mine'/label).mkdir(exist_ok=True)
            (tmp_path/'mine'/label/f'{k}.mp4').write_bytes(b'')
    (tmp_path/'s.yaml').write_text(f'study: s\nsource: folder\nfolder: {tmp_path}/mine\ncontains: ""\n')
    p = subprocess.run([sys.executable, '-m', 'kinetics_dance.study.cli', 'download', '--study', tmp_path/'s.yaml', '--runs', tmp_path/'runs', '--scheduler', 'nowhere.json',
                        '--storage', 'bucket://x'], capture_output=True, text=True)
    assert p.returncode == 2 and 'unknown storage scheme bucket://' in p.stderr and 'Traceback' not in p.stderr, p.stderr
    p = subprocess.run([sys.executable, '-m', 'kinetics_dance.study.cli', 'download', '--study', tmp_path/'s.yaml', '--runs', tmp_path/'runs', '--scheduler', 'nowhere.json'],
                       capture_output=True, text=True)
    assert p.returncode == 2 and 'there is no such file' in p.stderr and len(p.stderr.strip().splitlines()) == 1, p.stderr


def command(folder, *args, **env):
    p = preloaded.run([sys.executable, '-m', 'kinetics_dance.study.cli', *map(str, args), '--study', folder/'s.yaml', '--runs', folder/'runs'], libraries='light', capture_output=True,
                      text=True, env=os.environ | env, cwd=folder)
    return p.returncode, p.stdout, p.stderr.strip()


def study_of_files(folder, upload):
    for k, label in itertools.product(range(6), 'ab'):
        (folder/'mine'/label).mkdir(parents=True, exist_ok=True)
        # no copies: each has a box of its own at the end, which says nothing
        (folder/'mine'/label/f'{k}.mp4').write_bytes(upload.read_bytes() + b'\0\0\0\x10free' + f'{k:07}{label}'.encode())
    (folder/'s.yaml').write_text(f'study: s\nsource: folder\nfolder: {folder}/mine\ncontains: ""\nn_valid: 1\nn_test: 1\nshort_side: 48\nn_frames: 4\nframe_height: 24\nframe_width: 32\nclip_frames: 2\ncrop_height: 20\ncrop_width: 24\n')


def test_a_video_that_is_gone_is_fetched_again(upload, tmp_path):
    "Frames says that it is not there; that is no word about its source"
    study_of_files(tmp_path, upload)
    assert command(tmp_path, 'download')[0] == 0
    table = ClipTable(tmp_path/'runs/s/clips.sqlite')
    before = table.frame()
    assert (before.status == 'ok').all() and len(before) == 12
    (tmp_path/'runs/s'/before.path[3]).unlink()
    status, out, err = command(tmp_path, 'frames')
    assert status == 0 and '11 ok, 1 file gone' in out, (out, err)
    assert command(tmp_path, 'download')[0] == 0 and '12 ok' in command(tmp_path, 'frames')[1]
    same = ['clip_id', 'path', 'bytes', 'sha256', 'status', 'reason']
    pd.testing.assert_frame_equal(table.frame()[same], before[same])
    # another storage, where nothing is: said, nothing is called bad, and it is not remembered
    status, out, err = command(tmp_path, 'frames', '--storage', tmp_path/'elsewhere')
    assert status == 2 and err.splitlines()[-1].count('storage: none of the 12 videos of the study is in') == 1 and 'Traceback' not in err, err
    assert (table.frame().status == 'ok').all() and '12 ok' in command(tmp_path, 'frames')[1]


@pytest.mark.parametrize('where', ['/proc/nothere', 'http://127.0.0.1:9/x', 's3://clips/kinetics'])
def test_a_storage_that_cannot_be_written_is_not_remembered(upload, tmp_path, where):
    study_of_files(tmp_path, upload)
    status, out, err = command(tmp_path, 'download', '--storage', where, AWS_ENDPOINT_URL='http://127.0.0.1:9', AWS_ACCESS_KEY_ID='x', AWS_SECRET_ACCESS_KEY='x', AWS_MAX_ATTEMPTS='1')
    assert status == 2 and len(err.splitlines()) == 1 and f'storage: this machine cannot write {where}' in err, err
    assert command(tmp_path, 'download')[0] == 0 and len(list((tmp_path/'runs/s/videos').glob('*.mp4'))) == 12


@pytest.fixture
def s3(monkeypatch, tmp_path):
    "A server that speaks the S3 protocol, on loopback"
    server = pytest.importorskip('moto.server', reason='needs moto[server]').ThreadedMotoServer('127.0.0.1', 0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for k, v in dict(AWS_ENDPOINT_URL=f'http://{host}:{port}', AWS_ACCESS_KEY_ID='x', AWS_SECRET_ACCESS_KEY='x', AWS_DEFAULT_REGION='us-east-1').items(): monkeypatch.setenv(k, v)
        import boto3, s3fs
        s3fs.S3FileSystem.clear_instance_cache()
        boto3.client('s3').create_bucket(Bucket='clips')
        yield 's3://clips/kinetics'
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def sizes(folder):
    "What lies in a folder, without the mark that says whose it is"
    return {k: n for k, n in storage.sizes(folder).items() if k != '.kinetics_dance'}


@pytest.mark.parametrize('kind', ['memory', 's3'])
def test_clips_and_frames_in_a_bucket(kind, upload, alone, tmp_path, monkeypatch, request):
    "Downloaded, stored, opened and read through an address: the same bytes, and nothing else lies there"
    monkeypatch.setenv('KINETICS_DANCE_CACHE', str(tmp_path/'cache'))
    where, n = request.getfixturevalue('s3') if kind == 's3' else f'memory://{tmp_path.name}', 6
    at, pool = storage.as_path(where), Here() if kind == 'memory' else None
    def again(): return download(table_in(tmp_path, upload, n), tmp_path, storage=where, pool=pool, **HOW)
    out = again()
    assert (out.status == 'ok').all() and not list(things(tmp_path/'videos') if (tmp_path/'videos').exists() else [])
    made = {k: at.fs.modified((at/'videos'/k).path) for k in sizes(at/'videos')}
    assert again().attempts.tolist() == out.attempts.tolist()
    (at/out.path[0]).unlink()           # one goes away: that one is made again, and no other
    assert (again().status == 'ok').all() and len(made) == n
    assert [k for k in made if at.fs.modified((at/'videos'/k).path) != made[k]] == [out.path[0].split('/')[1]]
    whole = ClipTable(alone/'clips.sqlite').frame()[:n]
    assert {k: (at/'videos'/k).read_bytes() for k in sizes(at/'videos')} == {p.split('/')[1]: (alone/p).read_bytes() for p in whole.path}
    how = dict(n_frames=4, size=(24, 32), log=lambda line: None, pool=pool)
    made = build_store(out, at/'frames', **how)
    assert (made.status == 'ok').all(), made.detail.tolist()
    local = build_store(whole, alone/'few', n_frames=4, size=(24, 32), log=lambda line: None)
    assert (local.status == 'ok').all()
    assert {k: (at/'frames'/k).read_bytes() for k in sizes(at/'frames')} == frames_of(alone/'few')
    times = {k: at.fs.modified((at/'frames'/k).path) for k in sizes(at/'frames') if k.endswith('.npy')}
    assert (build_store(out, at/'frames', **how).status == 'ok').all()          # nothing good is made anew
    assert times == {k: at.fs.modified((at/'frames'/k).path) for k in times}
    store, mine = FrameStore(str(at/'frames')), FrameStore(alone/'few')
    assert (store.batch(store.clip_ids) == mine.batch(mine.clip_ids)).all() and (store.seconds(store.clip_ids[0]) == mine.seconds(mine.clip_ids[0])).all()
    storage.home(tmp_path, where)               # a study remembers where its frames are
    assert len(FrameStore(tmp_path/'frames')) == n
    made = build_store(out[:2], at/'frames', n_frames=5, size=(24, 32), log=lambda line: None, pool=pool)      # other parameters: all anew
    assert len(sizes(at/'frames')) == 6 and FrameStore(at/'frames').shape[0] == 5


SLURM = dict( # the commands of a cluster of one machine: a job is a process group of its own
    sbatch='for script; do :; done; cp "$script" "$JOBS/script-$$"; setsid bash "$JOBS/script-$$" >"$JOBS/log-$$" 2>&1 & echo $! >>"$JOBS/pids"; echo "Submitted batch job $!"',
    scancel='for id; do kill -9 -- "-$id"; done', squeue='true')


def test_the_recipe_for_slurm(upload, alone, tmp_path):
    "It asks for the jobs, they are workers, the file that it writes is what --scheduler takes; Ctrl-C ends the jobs and takes the file away"
    pytest.importorskip('dask_jobqueue', reason='needs dask-jobqueue')
    recipe, file, f = ROOT/'recipes'/'dask_slurm.py', tmp_path/'scheduler.json', tmp_path/'shared'
    for name, does in SLURM.items():
        (tmp_path/name).write_text(f'#!/bin/bash\n{does}\n')
        (tmp_path/name).chmod(0o755)
    env = os.environ | dict(JOBS=str(tmp_path), DASK_JOBQUEUE__SLURM__INTERFACE='lo')
    line = [sys.executable, recipe, '--jobs', '2', '--cores', '1', '--partition', 'short', '--file', file]
    script = subprocess.run([*line, '--script'], env=env, capture_output=True, text=True, check=True).stdout
    assert '#SBATCH -p short' in script and '--cpus-per-task=1' in script and '--memory-limit 0' in script and not file.exists()
    subprocess.run(['bash', '-n'], input=script, text=True, check=True)
    nothing = subprocess.run(line, env=env | dict(PATH=str(tmp_path/'none')), capture_output=True, text=True)
    assert nothing.returncode == 1 and nothing.stderr.strip().splitlines()[-1].startswith('there is no sbatch here'), nothing.stderr
    p = subprocess.Popen(line, env=env | dict(PATH=f"{tmp_path}:{os.environ['PATH']}"), stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert p.stdout.readline().startswith('scheduler tcp://')
        f.mkdir()
        with workers(str(file), f, log=News(), patience=150) as pool: out = download(table_in(f, upload), f, pool=pool, **HOW)
        assert (out.status == 'ok').all() and state(f) == state(alone)
        jobs = [int(x) for x in (tmp_path/'pids').read_text().split()]
        assert len(jobs) == 2
        p.send_signal(signal.SIGINT)
        assert p.wait(60) == 0 and not file.exists()
        psutil.wait_procs([psutil.Process(j) for j in jobs if psutil.pid_exists(j)], timeout=20)
        assert not [j for j in jobs if psutil.pid_exists(j)]
    finally:
        p.stdout.close()
        for g in [p.pid, *map(int, (tmp_path/'pids').read_text().split() if (tmp_path/'pids').exists() else [])]:
            with suppress(ProcessLookupError): os.killpg(g, signal.SIGKILL)
        p.wait()


def test_the_recipe_for_kubernetes_agrees_with_the_operator_and_with_itself():
    "By the schema that the operator gives to Kubernetes; a field that is not in it is an error"
    import importlib.util, yaml
    from jsonschema import Draft7Validator
    found = importlib.util.find_spec('dask_kubernetes') or pytest.skip('needs dask-kubernetes')
    crd = yaml.safe_load((Path(found.origin).parent/'operator/deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml').read_text())
    schema = next(v['schema']['openAPIV3Schema'] for v in crd['spec']['versions'] if v['name'] == 'v1')
    def closed(x):
        if isinstance(x, list): return [closed(v) for v in x]
        if not isinstance(x, dict): return x
        if x.get('x-kubernetes-int-or-string'): return {}
        known = isinstance(x.get('properties'), dict) and not x.get('x-kubernetes-preserve-unknown-fields') and 'additionalProperties' not in x
        return {k: closed(v) for k, v in x.items()} | (dict(additionalProperties=False) if known else {})
    schema = closed(schema)
    schema['properties'] |= dict.fromkeys(('apiVersion', 'kind', 'metadata'), {})
    wrong = lambda spec: [e.message for e in Draft7Validator(schema).iter_errors(spec)]
    text = (ROOT/'recipes/dask_kubernetes.yaml').read_text()
    spec = yaml.safe_load(text)
    assert spec['apiVersion'] == f"{crd['spec']['group']}/v1" and spec['kind'] == crd['spec']['names']['kind'] and not wrong(spec)
    for good, bad in (('replicas: 16', 'replica: 16'), ('args: [dask-sch', 'arg: [dask-sch'), ('containerPort: 8786', 'containerPort: a'), ('envFrom', 'envform'), ('readinessProbe', 'readynessProbe')):
        assert good in text and wrong(yaml.safe_load(text.replace(good, bad))), bad
    worker, scheduler = (spec['spec'][k]['spec']['containers'][0] for k in ('worker', 'scheduler'))
    service = spec['spec']['scheduler']['service']
    assert worker['image'] == scheduler['image'] and worker['args'][0] == 'dask-worker' and scheduler['args'] == ['dask-scheduler']
    ports = {p['name']: p['containerPort'] for p in scheduler['ports']}
    assert {p['targetPort']: p['port'] for p in service['ports']} == ports == {'tcp-comm': 8786, 'http-dashboard': 8787} and scheduler['readinessProbe']['httpGet']['port'] in ports
    assert service['selector'] == {'dask.org/cluster-name': spec['metadata']['name'], 'dask.org/component': 'scheduler'}
    assert int(worker['args'][worker['args'].index('--nthreads') + 1]) == int(worker['resources']['requests']['cpu'])
