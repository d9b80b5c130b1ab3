"""Two hundred clips and every fault at once: the final state is exactly as predicted, however often the downloader was killed."""
import io, json, os, random, signal, subprocess, sys, tarfile, time
from functools import partial
import pandas as pd, pytest
import preloaded
from faults import Fault, Faults
from conftest import things
from kinetics_dance.clips.splits import wanted
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.core.base import StudyError
from kinetics_dance.download.downloader import download
from kinetics_dance.download.progress import Pace
from kinetics_dance.download.sources import YouTube, is_final
from kinetics_dance.core.base import Unavailable
from kinetics_dance.video.decoding import numbered_clip, probe

QUICK = dict(sleep=0, wait=.05, retries=1, options=dict(socket_timeout=1.5))
# kind of upload: (its fault, what becomes of a clip of its first two seconds)
KINDS = dict(
    fine=(Fault(), 'ok'), f404=(Fault(status=404), 'removed'), f410=(Fault(status=410), 'removed'), f403=(Fault(status=403), 'http-403'),
    f429=(Fault(status=429, retry_after=.2, times=2), 'ok'), f500=(Fault(status=500, times=3), 'ok'), f503=(Fault(status=503), 'http-503'),
    heal=(Fault(status=503, times=2), 'ok'), reset=(Fault(reset=3000, times=3), 'ok'), broken=(Fault(reset=3000, ranges=False), None),
    stall=(Fault(stall=2000, times=2), 'ok'), longer=(Fault(longer=5000, times=2), 'ok'), html=(Fault(html=True), 'not a video'),
    empty=(Fault(body=b''), 'truncated'), short=(Fault(), 'too short'), cut=(Fault(), 'truncated'))
COUNT = dict(fine=110, f404=12, f410=6, f403=3, f429=6, f500=6, f503=3, heal=10, reset=10, broken=2, stall=4, longer=6, html=8, empty=6, short=6, cut=6)
NAMES = [f'{k:_<8}{i:03}' for k, n in COUNT.items() for i in range(n)]


@pytest.fixture(scope='module')
def uploads(tmp_path_factory):
    d = tmp_path_factory.mktemp('uploads')
    whole = numbered_clip(d/'whole.mp4', n=45, fps=15, size=(48, 64))
    short = numbered_clip(d/'short.mp4', n=12, fps=15, size=(48, 64))
    (d/'cut.mp4').write_bytes(whole.read_bytes()[:whole.stat().st_size//2])
    return whole, short, d/'cut.mp4'


def server(uploads):
    whole, short, cut = uploads
    kind = lambda n: n.rstrip('0123456789')[:8].rstrip('_')
    return Faults({f'/{n}.mp4': dict(short=short, cut=cut).get(kind(n), whole) for n in NAMES},
                  {f'/{n}.mp4': KINDS[kind(n)][0] for n in NAMES if kind(n) not in ('fine', 'short', 'cut')})


def clips():
    return pd.DataFrame([dict(label=('tango dancing', 'tap dancing')[i % 2], youtube_id=n, time_start=0., time_end=2., split='train', source='demo')
                         for i, n in enumerate(NAMES)])


def done(folder): return len(list((folder/'videos').glob('[!.]*.mp4')))


def state(folder):
    "Table and files; times and the number of attempts tell the history, which may differ"
    t = ClipTable(folder/'clips.sqlite').frame().drop(columns=['updated', 'attempts'])
    return t.to_json(), {p.name: p.read_bytes() for p in sorted(things(folder/'videos'))}


SCRIPT = """
import json, sys
from pathlib import Path
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.download.downloader import download
from kinetics_dance.download.progress import Pace
if __name__ == '__main__':
    f = Path(sys.argv[1])
    download(ClipTable(f/'clips.sqlite'), f, url_template=sys.argv[2], short_side=48, wait=.05, attempts=4, timeout=60,
             settings=json.loads(sys.argv[3]), pace=Pace(wait=.1, patience=50))
"""


def test_two_hundred_clips_and_twenty_kills(uploads, tmp_path):
    outcome, killed = tmp_path/'once', tmp_path/'killed'
    for f in (outcome, killed): ClipTable(f/'clips.sqlite').set(clips())
    with server(uploads) as s:
        out = download(ClipTable(outcome/'clips.sqlite'), outcome, url_template=s.template(), short_side=48, wait=.05, attempts=4, settings=QUICK,
                       timeout=60, pace=Pace(wait=.1, patience=50))
    expected = {n: KINDS[n.rstrip('0123456789')[:8].rstrip('_')][1] for n in NAMES}
    got = {r.youtube_id: 'ok' if r.status == 'ok' else r.reason for r in out.itertuples()}
    wrong = {n: (got[n], expected[n]) for n in NAMES if got[n] != expected[n] and expected[n]}
    assert len(NAMES) >= 200 and not wrong, (wrong, out[out.youtube_id.isin(wrong)].detail.tolist()[:5])
    assert all(got[n] in ('truncated', 'other') for n in NAMES if expected[n] is None)
    ok = out[out.status == 'ok']
    assert sorted(p.name for p in things(outcome/'videos')) == sorted(f'{c}.mp4' for c in ok.clip_id)
    assert all(probe(outcome/p)['frames'] == 30 for p in ok.path[::10])

    rng, kills = random.Random(0), 0
    with server(uploads) as s:
        (tmp_path/'run.py').write_text(SCRIPT)
        command = [sys.executable, tmp_path/'run.py', killed, s.template(), json.dumps(QUICK)]
        seen = []
        while kills < 20:
            p = preloaded.Popen(command, libraries='light', start_new_session=True)
            # some before the first clip, most some clips on from where the last one was killed
            goal, limit = done(killed) + rng.choice((0, 1, 2, 3, 5, 8)), time.monotonic() + 30
            while p.poll() is None and done(killed) < goal and time.monotonic() < limit: time.sleep(.005)
            if p.poll() is None: time.sleep(rng.uniform(0, .3) if goal else rng.uniform(0, 3))
            if p.poll() is not None: break                              # everything is done: nothing is left to kill
            seen.append(done(killed))
            p.kill() if rng.random() < .5 else os.killpg(p.pid, signal.SIGKILL)     # alone, or with its workers
            p.wait()
            kills += 1
        assert kills == 20 and len([n for n in seen if 0 < n < len(ok)]) >= 10, seen
        for path in list(s.plan):                                       # a kill may have used up a fault that heals: the rest must too
            if any(k in path for k in ('f429', 'f500', 'heal', 'reset', 'stall', 'longer')): s.plan[path] = []
        subprocess.run(command, check=True)
    a, b = state(outcome), state(killed)
    assert a[1] == b[1]
    a, b = (pd.DataFrame(json.loads(x[0])) for x in (a, b))
    loose = a.youtube_id.str.startswith('broken')                       # its reason depends on where the connection broke
    assert a[~loose].to_json() == b[~loose].to_json()


PART = '''
import io, json, sys
from functools import partial
from pathlib import Path
import pandas as pd
from kinetics_dance.clips.splits import wanted
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.download.downloader import download
if __name__ == '__main__':
    f = Path(sys.argv[1])
    lines = pd.read_json(io.StringIO(sys.argv[3])).astype(dict(time_start=float, time_end=float))
    download(ClipTable(f/'clips.sqlite'), f, url_template=sys.argv[2], short_side=48, settings=json.loads(sys.argv[4]), wanted=partial(wanted, lines, n_train=10), attempts=1)
'''


def test_replacements_do_not_depend_on_kills(uploads, tmp_path):
    "A quota of the first in line, of which many are gone"
    lines = clips()[lambda d: d.youtube_id.str.match('f404|f410|html|short|fine')]
    lines = lines.sample(frac=1, random_state=0).reset_index(drop=True)
    ask = partial(wanted, lines, n_train=10)
    results = []
    with server(uploads) as s:
        for f in (tmp_path/'a', tmp_path/'b'):
            table = ClipTable(f/'clips.sqlite')
            if f.name == 'b':                                           # stopped in the middle, then again
                (tmp_path/'part.py').write_text(PART)
                for n in (3, 12):
                    p = preloaded.Popen([sys.executable, tmp_path/'part.py', f, s.template(), lines.to_json(), json.dumps(QUICK)], libraries='light')
                    limit = time.monotonic() + 30
                    while done(f) < n and p.poll() is None and time.monotonic() < limit: time.sleep(.01)
                    assert p.poll() is None and done(f) >= n
                    p.kill(), p.wait()
            out = download(table, f, url_template=s.template(), short_side=48, settings=QUICK, wanted=ask, attempts=1)
            results.append(state(f))
            assert (out[out.status == 'ok'].groupby('label').size() == 10).all()
            first = {c for c in lines.groupby("label").head(10).youtube_id}
            assert first <= set(out.youtube_id) and len(out) > 20
    assert results[0] == results[1]


def tar_of(members):
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode='w:gz') as t:
        for name, data in members.items():
            m = tarfile.TarInfo(name)
            m.size = len(data)
            t.addfile(m, io.BytesIO(data))
    return b.getvalue()


def test_mirror_through_the_downloader(uploads, tmp_path):
    "Clips of two tars, one of which breaks twice and one that ends early for good; then the second is mended"
    whole = uploads[0].read_bytes()
    ids = [f'{"mirror__"}{i:03}' for i in range(12)]
    name = lambda i: f'tango dancing/{i}_000000_000003.mp4'
    good = tar_of({name(i): whole for i in ids[:6]} | {name(ids[6]): b'', name(ids[7]): b'no video at all'*99} | {name('unwanted___'): whole})
    second = tar_of({name(i): whole + os.urandom(20_000) for i in ids[9:]})
    df = pd.DataFrame([dict(label='tango dancing', youtube_id=i, time_start=0., time_end=3., split='train', source='cvdf',
                            url=f'train/k700_train_{610 if k < 9 else 611}.tar.gz') for k, i in enumerate(ids)])
    table = ClipTable(tmp_path/'clips.sqlite')
    table.set(df)
    bodies = {'/train/k700_train_610.tar.gz': good, '/train/k700_train_611.tar.gz': second}
    plan = {'/train/k700_train_610.tar.gz': [Fault(reset=len(good)//3), Fault(reset=len(good)//4)],
            '/train/k700_train_611.tar.gz': Fault(cut=len(second)//2)}
    with Faults(bodies, plan) as s:
        out = download(table, tmp_path, settings=dict(base=s.url, wait=.05, retries=2), short_side=48, attempts=1).set_index('youtube_id')
        assert out.status[ids[:6]].eq('ok').all() and out.reason[ids[6:9]].tolist() == ['truncated', 'not a video', 'removed']
        assert out.frames[ids[0]] == 45 and set(out.status[ids[9:]]) <= {'ok', 'missing'} and 'truncated' in set(out.reason[ids[9:]])
        asked = s.hits['/train/k700_train_610.tar.gz']
        s.plan.clear()
        out = download(table, tmp_path, settings=dict(base=s.url, wait=.05), short_side=48).set_index('youtube_id')
        assert out.status[ids[9:]].eq('ok').all()
        assert s.hits['/train/k700_train_610.tar.gz'] == asked         # what is final is not asked for again
    assert sorted(p.name for p in things(tmp_path/'videos')) == sorted(f'{c}.mp4' for c in out.clip_id[out.status == 'ok'])


def test_too_many_requests_end_the_run_and_lose_nothing(uploads, tmp_path):
    table = ClipTable(tmp_path/'clips.sqlite')
    table.set(clips()[:30])
    lines = []
    with Faults({f'/{n}.mp4': uploads[0] for n in NAMES}, {f'/{n}.mp4': Fault(status=429) for n in NAMES[8:]}) as s:
        out = download(table, tmp_path, url_template=s.template(), short_side=48, settings=QUICK, jobs=1, pace=Pace(wait=.05, patience=3), log=lines.append)
        asked = len([p for p in s.hits if s.hits[p]])
    assert any('rate-limited' in l for l in lines) and asked < 25
    assert set(out.status[out.youtube_id.isin(NAMES[:8])]) == {'ok'} and (out.status == 'pending').sum() >= 5
    with Faults({f'/{n}.mp4': uploads[0] for n in NAMES}) as s:
        assert (download(table, tmp_path, url_template=s.template(), short_side=48, settings=QUICK).status == 'ok').all()


def test_retry_after_is_obeyed(uploads, tmp_path):
    table = ClipTable(tmp_path/'clips.sqlite')
    table.set(clips()[:6])
    with Faults({f'/{n}.mp4': uploads[0] for n in NAMES}, {f'/{NAMES[0]}.mp4': Fault(status=429, retry_after=3, times=1)}) as s:
        out = download(table, tmp_path, url_template=s.template(), short_side=48, settings=QUICK | dict(retries=0), jobs=1)
        first = s.times_of(f'/{NAMES[0]}.mp4')
        after = [h.seconds for h in s.log if h.seconds > first[0] + .5]
        assert (out.status == 'ok').all() and min(after) >= first[0] + 2, [h.seconds - first[0] for h in s.log]


def test_a_section_that_broke_is_not_a_short_video(uploads, tmp_path):
    "ffmpeg, which fetches sections for yt-dlp, calls a broken transfer a success"
    big = numbered_clip(tmp_path/'big.mp4', n=300, fps=15, size=(192, 256))
    n = big.stat().st_size
    source, clip = dict(sections=True, **QUICK), dict(youtube_id='section_000', time_start=2., time_end=18.)
    with Faults({'/section_000.mp4': big}) as s: assert probe(YouTube(s.template(), **source).fetch(clip, tmp_path).path)['seconds'] > 15
    with Faults({'/section_000.mp4': big}, {'/section_000.mp4': Fault(close=n//2, ranges=False)}) as s:
        with pytest.raises(Unavailable) as e: YouTube(s.template(), **source).fetch(clip, tmp_path)
        assert not is_final(e.value.reason)


def test_all_workers_stop_for_a_pause(uploads, tmp_path):
    "After a 429 only what was under way already is asked for"
    table = ClipTable(tmp_path/'clips.sqlite')
    table.set(clips()[:16])
    with Faults({f'/{n}.mp4': uploads[0] for n in NAMES}, {f'/{NAMES[0]}.mp4': Fault(status=429, retry_after=4, times=1)}) as s:
        out = download(table, tmp_path, url_template=s.template(), short_side=48, settings=QUICK | dict(retries=0), jobs=3)
        first = s.times_of(f'/{NAMES[0]}.mp4')[0]
        early = {h.path for h in s.log if first + .2 < h.seconds < first + 3.8}
        assert (out.status == 'ok').all() and len(early) <= 3, early


def test_disk_full(uploads, tmp_path):
    small = tmp_path/'small'
    small.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=320k', 'none', small], capture_output=True).returncode: pytest.skip('no right to mount a small disk here')
    try:
        table = ClipTable(tmp_path/'clips.sqlite')
        table.set(clips()[:60])
        with Faults({f'/{n}.mp4': uploads[0] for n in NAMES}) as s:
            with pytest.raises(StudyError, match='the disk is full; make room and run this again'):
                download(table, small, url_template=s.template(), settings=QUICK)
            t = table.frame()
            assert (t.status == 'ok').any() and set(t.status) <= {'ok', 'pending'}
            assert all((small/p).stat().st_size == b for p, b in t[t.status == 'ok'][['path', 'bytes']].itertuples(index=False))
            subprocess.run(['mount', '-o', 'remount,size=9m', small], check=True)
            out = download(table, small, url_template=s.template(), settings=QUICK)
            assert (out.status == 'ok').all()
    finally: subprocess.run(['umount', '-l', small])


def test_two_downloaders_do_not_fight(uploads, tmp_path):
    f = tmp_path/'study'
    ClipTable(f/'clips.sqlite').set(clips()[:40])
    (tmp_path/'run.py').write_text(SCRIPT)
    with Faults({f'/{n}.mp4': uploads[0] for n in NAMES}, rate=8000) as s:
        p = preloaded.Popen([sys.executable, tmp_path/'run.py', f, s.template(), json.dumps(QUICK)], libraries='light')
        try:
            limit = time.monotonic() + 30
            while not (f/'.download.holder').exists() and time.monotonic() < limit: time.sleep(.05)
            with pytest.raises(StudyError, match=f'already .process {p.pid} on '): download(ClipTable(f/'clips.sqlite'), f, url_template=s.template())
        finally: p.kill(), p.wait()
    with Faults({f'/{n}.mp4': uploads[0] for n in NAMES}) as s:         # the lock went away with its process
        assert (download(ClipTable(f/'clips.sqlite'), f, url_template=s.template(), short_side=48, settings=QUICK).status == 'ok').all()
