"""Sources against a server that misbehaves: real yt-dlp, real tars, real sockets, all on loopback."""
import gzip, io, os, random, shutil, subprocess, sys, tarfile, textwrap, threading, time
from pathlib import Path
import pytest
from faults import Fault, Faults
from kinetics_dance.core.base import StudyError
from kinetics_dance.download.cvdf import CLASS_NUMBERS, CVDF, class_numbers, tar_of
from kinetics_dance.download.sources import (
    FINAL, REASONS, SOURCES, YouTube, check_runtime, get_source, is_final, js_runtimes)
from kinetics_dance.core.base import Unavailable
from kinetics_dance.video.decoding import numbered_clip

ROOT = Path(__file__).resolve().parent.parent
LABEL, TAR = 'tango dancing', 'train/k700_train_610.tar.gz'

# ---------------------------------------------------------------- YouTube's way: yt-dlp on plain addresses

@pytest.fixture(scope='module')
def video(tmp_path_factory):
    path = numbered_clip(tmp_path_factory.mktemp('video')/'v.mp4', n=60, fps=15, size=(96, 128))
    return path.read_bytes()

def ids(names): return {f'/{n:_<11}.mp4': n for n in names}

def ask(source, name, folder):
    "What a source says of an id: the bytes, or the error"
    try: return source.fetch(dict(youtube_id=f'{name:_<11}'), folder).path.read_bytes()
    except Unavailable as e: return e

def test_reasons_of_yt_dlp(video, tmp_path):
    plan = dict(e404=Fault(status=404), e410=Fault(status=410), e403=Fault(status=403), e429=Fault(status=429, retry_after=7),
                date=Fault(status=429, retry_after=9, retry_date=True), e503=Fault(status=503, retry_after=3), e500=Fault(status=500),
                page=Fault(html=True), empty=Fault(body=b''), stall=Fault(stall=1000), reset=Fault(reset=5000), cut=Fault(close=5000),
                longer=Fault(longer=500), fine=Fault(), heals=[Fault(), Fault(reset=5000), Fault(close=2000), Fault(stall=3000)],
                e503once=[Fault(), Fault(status=503)], silent=Fault(delay=3))
    expected = dict(e404='removed', e410='removed', e403='http-403', e429='rate-limited', date='rate-limited', e503='http-503', e500='http-500',
                    page='not a video', empty='truncated', stall='timeout', reset='other', cut='truncated', longer='truncated', silent='timeout')
    named = ids(plan)
    with Faults(dict.fromkeys(named, video), {path: plan[n] for path, n in named.items()}) as server:
        source = YouTube(server.template(), wait=.02, retries=4, options=dict(socket_timeout=.4))
        got = {n: ask(source, n, tmp_path) for n in plan}
    reasons = {n: g.reason for n, g in got.items() if isinstance(g, Unavailable)}
    assert reasons == expected, got
    assert got['fine'] == got['heals'] == got['e503once'] == video
    assert got['e429'].retry_after == 7 and 8 <= got['date'].retry_after <= 10 and got['e503'].retry_after == 3 and got['e404'].retry_after is None
    assert all(r in REASONS or r.startswith('http-') for r in reasons.values())
    assert [is_final(expected[n]) for n in ('e404', 'page', 'e403', 'e429', 'e503', 'cut')] == [True, True, False, False, False, False]

@pytest.mark.parametrize('length', [True, False])
def test_size_is_bounded_with_and_without_a_promise(video, tmp_path, length):
    with Faults({'/aaaaaaaaaaa.mp4': bytes(video) + bytes(3_000_000)}, {'/aaaaaaaaaaa.mp4': Fault(length=length)}) as server:
        got = ask(YouTube(server.template(), max_filesize=100_000), 'aaaaaaaaaaa', tmp_path)
        assert got.reason == 'too large' and got.reason in FINAL
        assert isinstance(ask(YouTube(server.template(), max_filesize=10**7), 'aaaaaaaaaaa', tmp_path), bytes)

def test_settings_reach_yt_dlp(video, tmp_path):
    cookies = tmp_path/'cookies.txt'
    cookies.write_text('# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\tsecret\n')
    source = YouTube(cookies=str(cookies), proxy='http://127.0.0.1:9', ratelimit=50_000, sleep=3, retries=7, wait=2)
    o = source._ydl()[1].params
    assert (o['cookiefile'], o['proxy'], o['ratelimit'], o['sleep_interval'], o['max_sleep_interval']) == (str(cookies), 'http://127.0.0.1:9', 50_000, 3, 6)
    assert o['retries'] == o['fragment_retries'] == o['extractor_retries'] == 7 and 8 <= o['retry_sleep_functions']['http'](3) <= 24
    assert YouTube()._ydl()[1].params['sleep_interval'] == 10 and 'sleep_interval' not in YouTube('http://127.0.0.1/{id}')._ydl()[1].params
    before = cookies.read_text()
    with Faults({'/aaaaaaaaaaa.mp4': video}) as server:
        slow = YouTube(server.template(), cookies=str(cookies), ratelimit=len(video)/.8, sleep=.2)
        start = time.monotonic()
        assert ask(slow, 'aaaaaaaaaaa', tmp_path) == video and time.monotonic() - start > .6
    assert cookies.read_text() == before
    with Faults({}) as proxy: # a proxy gets the whole address
        ask(YouTube('http://example.invalid/{id}.mp4', proxy=proxy.url, retries=0), 'aaaaaaaaaaa', tmp_path)
        assert proxy.hits

def test_mistakes_are_told_before_anything_starts(tmp_path):
    for settings, words in ((dict(cookies='no/such.txt'), 'no/such.txt: no such file'), (dict(ratelimit='1M'), "ratelimit: '1M'"),
                            (dict(sleep=-1), 'sleep'), (dict(retrys=1), 'retrys')):
        with pytest.raises(StudyError, match=words): get_source('youtube', settings)
    for settings in (dict(base='s3.amazonaws.com'), dict(proxy='socks5://127.0.0.1:9'), dict(timeout='x'), dict(max_filesize=0), dict(bas='')):
        with pytest.raises(StudyError, match=next(iter(settings))): get_source('cvdf', settings)
    with pytest.raises(StudyError, match='youtube'): get_source('yutube')
    (tmp_path/'cookies.json').write_text('[{"name": "x"}]')
    assert 'Netscape' in YouTube('http://127.0.0.1/{id}', cookies=str(tmp_path/'cookies.json')).check()
    for evil in ('../../../x', 'a/b', 'aaaaaaaaaa', 'aaaaaaaaaaaa', '-oProxyComm\n', 'ａaaaaaaaaaa'):
        with pytest.raises(StudyError): YouTube().fetch(dict(youtube_id=evil), tmp_path)

def test_a_javascript_runtime_is_there_or_its_absence_is_said(tmp_path, monkeypatch):
    assert check_runtime() is None and YouTube().check() is None                        # deno's wheel lies beside python
    assert 'deno' in YouTube()._ydl()[1].params['js_runtimes']
    monkeypatch.setattr('sysconfig.get_path', lambda *_: str(tmp_path/'none'))
    monkeypatch.setenv('PATH', '')
    for problem in (check_runtime(), YouTube().check()): assert 'pip install deno' in problem and '\n' not in problem
    assert YouTube('http://127.0.0.1/{id}.mp4').check() is None                         # not YouTube: none is needed
    for name, version, ok in (('node', 'v18.2.0', False), ('node', 'v22.3.0', True), ('bun', '1.2.13', True)):
        program = tmp_path/f'{name}{version}'/name
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho {version}\n')
        program.chmod(0o755)
        monkeypatch.setenv('PATH', str(program.parent))
        assert list(js_runtimes()) == [name] and (check_runtime() is None) == ok
        if not ok: assert 'node 18.2.0 is too old' in check_runtime()

# ---------------------------------------------------------------- the mirror

def tar_bytes(members, level=1, end=True):
    "A tar.gz of (name or TarInfo, contents)"
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode='w', format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            m = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if m.isreg(): m.size = len(data)
            tar.addfile(m, io.BytesIO(data))
        size = tar.offset
    return gzip.compress(plain.getvalue() if end else plain.getvalue()[:size], level)

def clip(i, url=TAR): return dict(clip_id=f'{i:011}_000005_000015', label=LABEL, youtube_id=f'{i:011}', time_start=5., time_end=15., split='train', url=url)
def member(i): return f'{LABEL}/{clip(i)["clip_id"]}.mp4'
def noise(n, seed): return random.Random(seed).randbytes(n)

MEMBERS = {i: noise(40_000 + 911*i, i) for i in range(12)}
GOOD = tar_bytes([(LABEL, b'')][:0] + [(member(i), b) for i, b in MEMBERS.items()])
QUICK = dict(wait=.01, timeout=.5)

def outcome(source, clips, folder, keep_files=False):
    "{number: bytes or error}; checks that each clip comes once, and that nothing else is in the folder"
    got = {}
    for c, what in source.stream(clips, folder):
        i = int(c['youtube_id'])
        assert i not in got
        if isinstance(what, Unavailable): got[i] = what; continue
        assert what.path == folder/f"{c['clip_id']}.mp4" and what.start == 5
        got[i] = what.path.read_bytes()
        assert [p.name for p in folder.iterdir()] == [what.path.name]
        what.path.unlink()
    assert not list(folder.iterdir()) and sorted(got) == sorted(int(c['youtube_id']) for c in clips)
    return got

def run(tmp_path, body, plan=None, wanted=range(12), **settings):
    with Faults({f'/{TAR}': body}, {f'/{TAR}': plan} if plan is not None else {}) as server:
        return outcome(CVDF(server.url, **QUICK | settings), [clip(i) for i in wanted], tmp_path), server

def reasons(got): return {i: getattr(w, 'reason', 'ok') for i, w in got.items()}

def test_a_whole_tar_and_an_early_stop(tmp_path):
    got, server = run(tmp_path, GOOD)
    assert got == MEMBERS and server.hits[f'/{TAR}'] == 1
    got, server = run(tmp_path, GOOD, Fault(rate=400_000), wanted=[3, 1, 99])
    assert {i: got[i] for i in (1, 3)} == {i: MEMBERS[i] for i in (1, 3)} and got[99].reason == 'removed' and 'not in' in got[99].detail
    got, server = run(tmp_path, GOOD, Fault(rate=400_000), wanted=[2, 0])
    assert got == {i: MEMBERS[i] for i in (0, 2)} and server.log[0].sent < len(GOOD)/2
    with Faults({f'/{TAR}': GOOD}) as server:
        up = CVDF(server.url).fetch(clip(4), tmp_path)
        assert up.path.read_bytes() == MEMBERS[4] and up.start == 5
        with pytest.raises(Unavailable, match='removed'): CVDF(server.url).fetch(clip(77), tmp_path)
        with pytest.raises(Unavailable, match='removed'): CVDF(server.url).fetch(clip(7, 'train/k700_train_611.tar.gz'), tmp_path)

RESETS = [1, 700, 30_000, 41_001, 100_003]
@pytest.mark.parametrize('name, fault', [
    ('reset', dict()), ('close', dict()), ('no ranges', dict(ranges=False)), ('date for a mark', dict(etag=None, headers={'Last-Modified': 'Wed, 21 Oct 2015 07:28:00 GMT'})),
    ('no mark', dict(etag=None)), ('weak mark', dict(etag='W/"1"')), ('no length', dict(length=False, etag='"x"')), ('too long', dict(longer=700))])
def test_broken_connections_are_taken_up_again(tmp_path, name, fault):
    "The same bytes, whatever the server can or cannot do; only the missing part is asked for where that is possible"
    how = 'close' if name == 'close' else 'reset'
    plan = [*(Fault(**fault | {how: k}) for k in RESETS), Fault(times=99, **fault)]
    if name == 'no length': plan = [Fault(times=99, **fault)] # no end but the connection's: a break cannot be told
    got, server = run(tmp_path, GOOD, plan, wanted=[*range(12), 99], retries=7)
    if name == 'too long': assert got.pop(99).reason == 'removed' # 416 says that the promise was wrong, and the tar had its end
    else: assert got.pop(99).reason == 'removed'
    assert got == MEMBERS
    asked = [h.range for h in server.log]
    if name in ('reset', 'close'):
        assert asked[0] is None and all(asked[1:]) and len(asked) == 6
        assert [h.status for h in server.log] == [200] + [206]*5 and sum(h.sent for h in server.log) < len(GOOD)*1.3
    if name == 'no ranges': assert [h.status for h in server.log] == [200]*6
    if name in ('no mark', 'weak mark'): assert not any(asked) and len(asked) == 6

def test_another_file_in_its_place(tmp_path):
    "Half of one tar and half of another must never meet: what is left is read anew from the second"
    other = {i: noise(50_000, 100 + i) for i in MEMBERS}
    second = tar_bytes([(member(i), b) for i, b in other.items()])
    for ranges in (True, False):
        got, _ = run(tmp_path, GOOD, [Fault(reset=200_000), Fault(body=second, ranges=ranges, times=9)])
        kinds = ''.join('1' if got[i] == MEMBERS[i] else '2' if got[i] == other[i] else '?' for i in got)
        assert kinds.strip('2').strip('1') == '' and {'1', '2'} == set(kinds)

@pytest.mark.parametrize('name, plan, reason, first', [
    ('404', Fault(status=404), 'removed', 0), ('410', Fault(status=410), 'removed', 0), ('403', Fault(status=403), 'http-403', 0),
    ('429', Fault(status=429), 'rate-limited', 0), ('503', Fault(status=503), 'http-503', 0), ('stall', [Fault(stall=100_000), Fault(stall=0, times=99)], 'timeout', 2),
    ('always reset', [Fault(reset=100_000), Fault(reset=0, times=99)], 'truncated', 2), ('page', Fault(html=True), 'other', 0),
    ('text', Fault(body=b'Sorry, no tar here.'), 'other', 0), ('nothing', Fault(body=b''), 'truncated', 0), ('cut', Fault(cut=100_000), 'truncated', 2),
    ('cut to the head', Fault(cut=5), 'truncated', 0)])
def test_reasons_of_a_tar(tmp_path, name, plan, reason, first):
    got, server = run(tmp_path, GOOD, plan, retries=2, timeout=.3)
    assert list(reasons(got).values()) == ['ok']*first + [reason]*(12 - first), got
    assert is_final(reason) == (reason == 'removed')
    if name in ('404', '403', '410', 'page', 'cut'): assert server.hits[f'/{TAR}'] == 1
    else: assert server.hits[f'/{TAR}'] <= 4

def test_a_tar_cut_anywhere_is_never_taken_for_whole(tmp_path):
    "Cut at the end of a member, inside a header, without its end mark, with a broken header: those left are truncated, not removed"
    heads = [(member(i), b'x'*700) for i in range(3)]
    plain = bytearray(gzip.decompress(tar_bytes(heads)))
    broken = plain[:]
    broken[2*1536 + 20] ^= 1
    for body, n in ((plain[:1536], 1), (plain[:2*1536 + 100], 2), (plain[:3*1536], 3), (plain[:3*1536 + 512], 3), (broken, 2), (plain, 3)):
        whole = body is plain or len(body) == 3*1536 + 512 # one block of zeros is read as the end
        got, _ = run(tmp_path, gzip.compress(bytes(body)), wanted=[0, 1, 2, 9])
        assert list(reasons(got).values()) == ['ok']*n + ['truncated']*(3 - n) + ['removed' if whole else 'truncated'], (n, got)
    damaged = bytearray(GOOD)
    damaged[len(GOOD)//2] ^= 0x55
    got, _ = run(tmp_path, bytes(damaged), wanted=[*range(12), 99])
    assert got[0] == MEMBERS[0] and got[99].reason in ('truncated', 'removed')

def test_retry_after_is_obeyed_in_both_forms_and_bounded(tmp_path):
    for date in (False, True):
        plan = [Fault(status=429, retry_after=1, retry_date=date), Fault(reset=100_000), Fault(status=503, times=2)]
        got, server = run(tmp_path, GOOD, plan)
        assert got == MEMBERS
        t = server.times_of(f'/{TAR}')
        assert t[1] - t[0] >= .99
    got, server = run(tmp_path, GOOD, Fault(status=429, retry_after=3600), longest=60)
    assert server.hits[f'/{TAR}'] == 1 and got[0].reason == 'rate-limited' and got[0].retry_after == 3600

def special(name, kind, link='', size=0):
    m = tarfile.TarInfo(name)
    m.type, m.linkname, m.size = kind, link, size
    return m, b''

def test_evil_members_write_nothing_outside_and_are_reported(tmp_path):
    outside, folder = tmp_path/'outside', tmp_path/'in'/'side'
    outside.mkdir()
    folder.mkdir(parents=True)
    file = lambda i: f"{clip(i)['clip_id']}.mp4"
    evil = [(f'../{file(0)}', b'evil'), (f'/etc/{file(1)}', b'evil'), (f'{LABEL}/../../../{file(2)}', b'evil'), (f'..\\{file(3)}', b'evil'),
            special(member(4), tarfile.SYMTYPE, '/etc/passwd'), special(member(5), tarfile.LNKTYPE, '../outside/x'),
            special(member(6), tarfile.CHRTYPE), special(member(7), tarfile.FIFOTYPE), special(LABEL, tarfile.SYMTYPE, str(outside)),
            (member(8), b'behind a link that was never made'), special(f'{LABEL}x', tarfile.DIRTYPE), (f'{LABEL}/unwanted.mp4', b'x'),
            (member(9), b''), (member(10), noise(3000, 1)), (member(10), b'a second time')]
    lines = []
    got, _ = run(folder, tar_bytes(evil), wanted=range(12), max_filesize=2000, log=lines.append)
    assert reasons(got) == dict.fromkeys(range(8), 'not a video') | {8: 'ok', 9: 'truncated', 10: 'ok', 11: 'removed'} and got[10] == b'a second time'
    assert got[9].final and got[8] == b'behind a link that was never made'
    assert len(lines) == 10 and all(TAR in s and '\n' not in s for s in lines)
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob('*'))] == ['in', 'in/side', 'outside']

def test_bombs(tmp_path):
    zeros = tar_bytes([(f'{LABEL}/zeros.mp4', bytes(120_000_000)), (member(0), b'x')])
    got, _ = run(tmp_path, zeros, wanted=[0])
    assert got[0].reason == 'too large' and 'unpack' in got[0].detail and len(zeros) < 2_000_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('kinetics_dance.download.cvdf.MAX_MEMBERS', 100)
        got, _ = run(tmp_path, tar_bytes([(f'{LABEL}/{i}', b'') for i in range(120)] + [(member(0), b'x')]), wanted=[0])
        assert got[0].reason == 'too large'
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE): # a header that asks for memory
        head = special('x', kind, size=50_000_000)[0].tobuf()
        got, _ = run(tmp_path, gzip.compress(head + b'1'*50_000_000), wanted=[0])
        assert got[0].reason == 'too large', kind

def test_names_of_clips_are_checked(tmp_path):
    source = CVDF('http://127.0.0.1:9')
    for change in (dict(clip_id='../x'), dict(youtube_id='../../../..'), dict(clip_id='x_000005_000015'), dict(url='../x.tar.gz'), dict(url='/x.tar.gz'),
                   dict(url='http://x/y.tar.gz'), dict(url=None), dict(url='a/../x.tar.gz'), dict(url='x.mp4')):
        with pytest.raises(StudyError, match='clip '): list(source.stream([clip(1) | change], tmp_path))

def test_who_stops_asking_leaves_nothing_behind(tmp_path):
    threads = threading.active_count
    with Faults({f'/{TAR}': GOOD}, {f'/{TAR}': Fault(rate=300_000)}) as server:
        before = len(os.listdir('/proc/self/fd')) if Path('/proc/self/fd').exists() else None
        stream = CVDF(server.url, **QUICK).stream([clip(i) for i in range(12)], tmp_path)
        next(stream)[1].path.unlink()
        stream.close()
        limit = time.monotonic() + 5
        while server.now and time.monotonic() < limit: time.sleep(.02)
        assert not server.now and server.log[0].sent < len(GOOD) and not list(tmp_path.iterdir())
        if before is not None:
            while len(os.listdir('/proc/self/fd')) > before and time.monotonic() < limit: time.sleep(.02)
            assert len(os.listdir('/proc/self/fd')) <= before
    stop, got = threading.Event(), []
    with Faults({f'/{TAR}': GOOD}, {f'/{TAR}': Fault(rate=100_000)}) as server: # another thread can end it
        def consume():
            for c, up in CVDF(server.url, **QUICK).stream([clip(i) for i in range(12)], tmp_path, stop):
                got.append(up)
                stop.set()
        thread = threading.Thread(target=consume)
        thread.start()
        thread.join(10)
        assert not thread.is_alive() and len(got) == 1 and [p.name for p in tmp_path.iterdir()] == [got[0].path.name]

def test_a_slow_reader_and_a_slow_server(tmp_path):
    "A reader may take its time (that is no stall); a server that sends drops is one; a rate limit holds"
    with Faults({f'/{TAR}': GOOD}) as server:
        for c, up in CVDF(server.url, timeout=.3, wait=.01).stream([clip(i) for i in range(3)], tmp_path):
            time.sleep(.5)
            assert up.path.read_bytes() == MEMBERS[int(c['youtube_id'])]
            up.path.unlink()
        start = time.monotonic()
        outcome(CVDF(server.url, ratelimit=300_000), [clip(i) for i in range(6)], tmp_path)
        assert time.monotonic() - start > .6
        assert server.hits[f'/{TAR}'] == 2
    got, _ = run(tmp_path, GOOD, Fault(rate=400), timeout=.5, retries=1)
    assert got[0].reason == 'timeout'

def test_a_full_disk(tmp_path, monkeypatch):
    import kinetics_dance.download.cvdf as m
    def full(src, dst, *_): dst.write(src.read(1000)); raise OSError(28, 'No space left on device')
    real, calls = m.shutil.copyfileobj, []
    monkeypatch.setattr(m.shutil, 'copyfileobj', lambda *a: calls.append(1) or (full if len(calls) > 2 else real)(*a))
    got, _ = run(tmp_path, GOOD)
    assert list(reasons(got).values()) == ['ok']*2 + ['disk full']*10

def test_a_tar_that_is_kept_goes_on_where_it_was(tmp_path):
    folder, kept = tmp_path/'clips', tmp_path/'tars'
    folder.mkdir()
    name = Path(TAR).name
    with Faults({f'/{TAR}': GOOD}, {f'/{TAR}': [Fault(reset=300_000), Fault(status=403), Fault()]}) as server:
        source = CVDF(server.url, keep=str(kept), **QUICK)
        assert set(reasons(outcome(source, [clip(1)], folder)).values()) == {'http-403'}
        part = (kept/f'.{name}.part').stat().st_size
        assert part and sorted(p.name for p in kept.iterdir()) == [f'.{name}.mark', f'.{name}.part']
        assert outcome(source, [clip(i) for i in range(12)], folder) == MEMBERS
        assert server.log[-1].range == f'bytes={part}-' and server.log[-1].sent == len(GOOD) - part
        assert sorted(p.name for p in kept.iterdir()) == [f'.{name}.mark', name] and (kept/name).read_bytes() == GOOD
        hits = server.hits.total()
        assert outcome(source, [clip(3)], folder) == {3: MEMBERS[3]} and server.hits.total() == hits
        (kept/name).write_bytes(GOOD[:-200_000])                # damaged on disk: not believed a second time
        assert reasons(outcome(source, [clip(0), clip(11)], folder)) == {0: 'ok', 11: 'truncated'}
        assert outcome(source, [clip(11)], folder) == {11: MEMBERS[11]}
    other = tar_bytes([(member(3), b'of another file')])                # what lies there is the first part of a file that has changed
    shutil.rmtree(kept)
    with Faults({f'/{TAR}': GOOD}, {f'/{TAR}': [Fault(reset=300_000), Fault(status=403), Fault(body=other, times=9)]}) as server:
        source = CVDF(server.url, keep=str(kept), **QUICK)
        outcome(source, [clip(3)], folder)
        assert outcome(source, [clip(3)], folder) == {3: b'of another file'} and (kept/name).read_bytes() == other

def test_a_proxy_and_a_redirect(tmp_path, monkeypatch):
    with Faults({f'/{TAR}': GOOD}, {'/old/' + TAR: Fault(status=302, headers={'Location': f'/{TAR}'})}) as server:
        assert outcome(CVDF('http://example.invalid', proxy=server.url), [clip(0)], tmp_path) == {0: MEMBERS[0]}
        monkeypatch.setenv('http_proxy', server.url)
        monkeypatch.delenv('no_proxy', raising=False)
        assert outcome(CVDF('http://example.invalid'), [clip(1)], tmp_path) == {1: MEMBERS[1]}
        monkeypatch.delenv('http_proxy')
        assert outcome(CVDF(server.url + '/old', proxy=''), [clip(2)], tmp_path) == {2: MEMBERS[2]}
        assert server.hits == {f'/{TAR}': 3, f'/old/{TAR}': 1}
    got = outcome(CVDF('http://127.0.0.1:9', retries=1, wait=.01), [clip(2)], tmp_path)                     # nobody there
    assert got[2].reason == 'other'

MEMORY = r'''
    import re, sys, tempfile
    from pathlib import Path
    from kinetics_dance.download.cvdf import CVDF
    # not ru_maxrss: a process inherits that of the one that starts it
    def peak(): return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])
    clip = lambda i: dict(clip_id=f'{i:011}_000005_000015', youtube_id=f'{i:011}', time_start=5., url=sys.argv[2])
    before, n = peak(), 0
    with tempfile.TemporaryDirectory() as d:
        for _, up in CVDF(sys.argv[1]).stream([clip(i) for i in (0, 99)], Path(d)):
            up.path.unlink(); n += 1
    print(n, peak() - before)'''

def test_a_tar_is_never_held_in_memory(tmp_path):
    "120 MB, of which the first and the last member are wanted: a few MB of memory, in a process of its own"
    big = noise(3_000_000, 1)
    (tmp_path/'x.tar.gz').write_bytes(tar_bytes([(member(i), big) for i in [*range(40), 99]], level=0))
    with Faults(tmp_path) as server:
        out = subprocess.run([sys.executable, '-c', textwrap.dedent(MEMORY), server.url, 'x.tar.gz'], capture_output=True, text=True, check=True, timeout=60)
    n, kb = map(int, out.stdout.split())
    assert n == 2 and kb < 40_000, out.stdout

def test_numbers_of_the_classes():
    listed = ROOT.parent/'shared/data/kinetics/k700_2020_classes.txt'
    if not listed.exists(): pytest.skip('the list of the 700 classes is not here')
    names = [line.strip() for line in listed.read_text().splitlines() if line.strip()]
    numbers = class_numbers(names)
    assert {n: numbers[n] for n in names if 'dancing' in n} == CLASS_NUMBERS and len(CLASS_NUMBERS) == 15
    assert class_numbers(CLASS_NUMBERS) == CLASS_NUMBERS
    assert tar_of('abseiling', 'validate', numbers) == 'val/k700_val_001.tar.gz' and tar_of('zumba', 'valid', numbers) == 'train/k700_train_700.tar.gz'
    for bad in (lambda: class_numbers(['zumba']), lambda: tar_of('tango', 'train', CLASS_NUMBERS), lambda: tar_of('tango dancing', 'dev', CLASS_NUMBERS)):
        with pytest.raises(StudyError): bad()

def test_the_mirror_is_registered():
    assert SOURCES['cvdf'] is CVDF and get_source('cvdf').base == 'https://s3.amazonaws.com/kinetics/700_2020/' and get_source('cvdf').check() is None
