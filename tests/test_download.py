"""The downloader against a real HTTP server on loopback: what cannot be shown in a cell."""
import os, shutil, signal, subprocess, sys, time
from fractions import Fraction
from pathlib import Path
import av, numpy as np, pandas as pd, pytest
import preloaded
from faults import Fault, Faults
from conftest import things
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.core.base import StudyError
from kinetics_dance.download.downloader import download
from kinetics_dance.download.progress import Pace
from kinetics_dance.download.attrition import attrition_report
from kinetics_dance.download.sources import YouTube, get_source
from kinetics_dance.core.base import Unavailable
from kinetics_dance.core.processes import killable
from kinetics_dance.video.decoding import numbered_clip, open_video, probe, read_numbers
from kinetics_dance.video.encoding import normalise_clip

def frames_of(path):
    with av.open(str(path)) as c: return np.stack([f.to_ndarray(format='rgb24') for f in c.decode(video=0)])

PLAN = {f'/{name}.mp4': fault for name, fault in dict(
    stall______=Fault(delay=30), page_of_txt=Fault(html=True, body=b''), **{f'e{c}_______': Fault(status=c) for c in (403, 410, 429, 503)}).items()}

@pytest.fixture(scope='module')
def served(tmp_path_factory):
    "Folder of uploads and the address template of the server that serves it"
    folder = tmp_path_factory.mktemp('uploads')
    whole = numbered_clip(folder/'-good_one01.mp4', n=90, fps=15, size=(96, 128))
    for i in range(2, 5): shutil.copy(whole, folder/f'-good_one{i:02}.mp4')
    (folder/'cut_short01.mp4').write_bytes(whole.read_bytes()[:-3000])          # its header, at the end, is gone
    ordered = folder/'.faststart.mp4'                                           # its header comes first, its end is gone
    normalise_clip(whole, ordered)
    (folder/'cut_short02.mp4').write_bytes(ordered.read_bytes()[:int(ordered.stat().st_size*.6)])
    (folder/'just_text01.mp4').write_text('not a video\n'*5000)
    with Faults(folder, PLAN) as server: yield folder, server.template()

def clip_rows(*rows): return pd.DataFrame([dict(zip(('youtube_id', 'time_start', 'time_end'), r), label='tap dancing', split='train', source='demo') for r in rows])

def state(folder, table):
    "All that must not depend on how often a run was interrupted"
    files = {p.name: p.read_bytes() for p in things(folder/'videos')}
    return files, table.frame().drop(columns='updated').to_json()

GOOD = [(f'-good_one{i:02}', a, a+2) for i in range(1, 5) for a in (0, 3)]

def test_every_fault_gets_its_reason(served, tmp_path):
    _, url = served
    expected = {('-good_one01', 1, 3): 'ok', ('-good_one01', 4, 6): 'ok', ('-good_one02', 0, 6): 'ok', ('-good_one03', 5, 9): 'too short',
                ('-good_one04', 20, 25): 'too short', ('gone_for_ev', 0, 2): 'removed', ('cut_short01', 0, 2): 'truncated',
                ('cut_short02', 0, 2): 'ok', ('cut_short02', 4, 6): 'truncated', ('just_text01', 0, 2): 'not a video',
                ('page_of_txt', 0, 2): 'not a video', ('e403_______', 0, 2): 'http-403', ('e410_______', 0, 2): 'removed',
                ('e429_______', 0, 2): 'rate-limited', ('e503_______', 0, 2): 'http-503', ('stall______', 0, 2): 'timeout'}
    table = ClipTable(tmp_path/'clips.sqlite')
    table.set(clip_rows(*expected))
    out = download(table, tmp_path, url_template=url, attempts=2, wait=.1, settings=dict(options=dict(socket_timeout=1, retries=0)), pace=Pace(wait=.1))
    got = {(r.youtube_id, int(r.time_start), int(r.time_end)): 'ok' if r.status == 'ok' else r.reason for r in out.itertuples()}
    assert got == expected, out[['clip_id', 'status', 'reason', 'detail']].to_string()
    tried = dict(zip(out.youtube_id, out.attempts))
    assert tried['gone_for_ev'] == tried['just_text01'] == tried['cut_short01'] == 1 and tried['e503_______'] == tried['stall______'] == 2
    assert sorted(p.name for p in things(tmp_path/'videos')) == sorted(f'{c}.mp4' for c in out.clip_id[out.status == 'ok'])
    for r in out[out.status == 'ok'].itertuples():
        assert (read_numbers(frames_of(tmp_path/r.path)) == np.arange(r.time_start*15, r.time_end*15)).all()
        assert r.bytes == (tmp_path/r.path).stat().st_size and r.seconds == r.time_end - r.time_start
    report = attrition_report(out)
    assert report.loc['all', 'clips'] == len(expected) and report.loc['all', 'ok'] == 4
    assert report.drop(columns=['clips', 'alive']).loc['all'].sum() == len(expected)

def test_a_worker_that_hangs_is_killed(served, tmp_path):
    table = ClipTable(tmp_path/'clips.sqlite')
    table.set(clip_rows(('stall______', 0, 2), ('-good_one01', 0, 2)))
    out = download(table, tmp_path, url_template=served[1], short_side=64, timeout=8, attempts=1)
    assert dict(zip(out.youtube_id, out.reason.fillna('ok'))) == {'stall______': 'timeout', '-good_one01': 'ok'}
    assert [p.name for p in things(tmp_path/'videos')] == ['-good_one01_000000_000002.mp4']

def test_killed_and_run_again_ends_with_the_same(served, tmp_path):
    _, url = served
    rows = clip_rows(*GOOD, ('gone_for_ev', 0, 2), ('just_text01', 0, 2))
    whole, killed = tmp_path/'whole', tmp_path/'killed'
    tables = [ClipTable(f/'clips.sqlite') for f in (whole, killed)]
    for t in tables: t.set(rows)
    download(tables[0], whole, url_template=url, short_side=64)
    script = tmp_path/'run.py'
    script.write_text("import sys\nfrom kinetics_dance.clips.table import ClipTable\nfrom kinetics_dance.download.downloader import download\n"
                      "if __name__ == '__main__': download(ClipTable(sys.argv[1] + '/clips.sqlite'), sys.argv[1], url_template=sys.argv[2], short_side=64)\n")
    for n in (1, 4):
        p = preloaded.Popen([sys.executable, script, killed, url], libraries='light')
        limit = time.monotonic() + 60
        while len(list(killed.glob('videos/[!.]*.mp4'))) < n and p.poll() is None and time.monotonic() < limit: time.sleep(.01)
        p.send_signal(signal.SIGKILL); p.wait()
    assert p.returncode == -signal.SIGKILL
    download(tables[1], killed, url_template=url, short_side=64)
    assert state(whole, tables[0]) == state(killed, tables[1])

def test_nothing_is_fetched_twice_and_damage_is_repaired(served, tmp_path):
    _, url = served
    table = ClipTable(tmp_path/'clips.sqlite')
    table.set(clip_rows(*GOOD[:3]))
    first = download(table, tmp_path, url_template=url, short_side=64)
    before = state(tmp_path, table)
    download(table, tmp_path, url_template='http://127.0.0.1:9/{id}.mp4', short_side=64)   # nobody answers there: nobody is asked
    assert state(tmp_path, table) == before
    victim = tmp_path/first.path[1]
    victim.write_bytes(victim.read_bytes()[:-1])
    table.update([dict(clip_id=first.clip_id[0], status='failed', reason='other')])        # as a later stage would say it
    download(table, tmp_path, url_template=url, short_side=64)
    assert state(tmp_path, table) == before

@pytest.mark.parametrize('bad', ['../../etc/pass', 'a/b/c/d/e/f', 'short', 'eleven chrs', 'elevenchrs\n', 'x%(title)s00'])
def test_an_id_never_reaches_a_path(served, tmp_path, bad):
    table = ClipTable(tmp_path/'clips.sqlite')
    table.set(clip_rows((bad, 0, 2)))
    with pytest.raises(StudyError, match='not an id'): download(table, tmp_path, url_template=served[1])
    assert not list(things(tmp_path/'videos'))

def test_only_the_wanted_seconds(served, tmp_path):
    "As from YouTube: the section is cut by yt-dlp, and the clip from the section"
    upload = YouTube(served[1], sections=True).fetch(dict(youtube_id='-good_one01', time_start=2., time_end=5.), tmp_path)
    assert upload.start == 2 and 2.9 <= probe(upload.path)['seconds'] <= 3.2
    normalise_clip(upload.path, tmp_path/'clip.mp4', 3 - upload.start, 5 - upload.start)
    assert abs(read_numbers(frames_of(tmp_path/'clip.mp4')) - np.arange(45, 75)).max() <= 1

def test_youtube_asks_for_sections_and_reads_nothing_from_home():
    assert YouTube().sections and not YouTube('https://example.org/{id}.mp4').sections
    yt_dlp, y = YouTube()._ydl()
    assert y.params['cachedir'] is False and 'ffmpeg' in y.params['ffmpeg_location'] and os.environ['YTDLP_NO_PLUGINS']
    assert get_source('youtube', {}) is get_source('youtube', {})

def test_folder_source(served, tmp_path):
    folder, _ = served
    table = ClipTable(tmp_path/'clips.sqlite')
    rows = pd.DataFrame([dict(youtube_id='mine-0001', time_start=0., time_end=0., url=str(folder/'-good_one01.mp4')),
                         dict(youtube_id='mine-0002', time_start=0., time_end=0., url=str(folder/'nowhere.mp4'))])
    table.set(rows.assign(label='tap dancing', split='train', source='folder'))
    out = download(table, tmp_path)
    assert out.status.tolist() == ['ok', 'missing'] and out.reason[1] == 'removed'
    assert (read_numbers(frames_of(tmp_path/out.path[0])) == np.arange(90)).all() and (folder/'-good_one01.mp4').exists()

@pytest.mark.parametrize('suffix,codec,fps,options', [
    ('mp4', 'libx264', 15, {'g': '250'}), ('mp4', 'libx264', Fraction(30000, 1001), {'g': '250', 'bf': '3'}),
    ('mkv', 'libx264', 25, {'g': '48', 'x264-params': 'open-gop=1:bframes=3'}), ('ts', 'libx264', 25, {'g': '25'}),
    ('webm', 'libvpx-vp9', 15, {'cpu-used': '8', 'deadline': 'realtime'}), ('avi', 'mpeg4', 25, {})])
def test_trim_is_exact_to_the_frame(tmp_path, suffix, codec, fps, options):
    src = numbered_clip(tmp_path/f'src.{suffix}', n=int(fps*5), fps=fps, size=(96, 128), codec=codec, options=options, sound=suffix == 'mp4')
    got = normalise_clip(src, tmp_path/'clip.mp4', 2, 4)
    numbers = read_numbers(frames_of(tmp_path/'clip.mp4'))
    wanted = np.ceil(2*Fraction(fps)) + np.arange(got['frames'])
    assert abs(numbers - wanted.astype(int)).max() <= 1 and (np.diff(numbers) == 1).all()
    assert abs(got['frames'] - 2*fps) <= 1 and got['audio'] == (suffix == 'mp4') and got['error'] is None
    with open_video(tmp_path/'clip.mp4') as (c, v):
        assert v.start_time == 0 and v.codec_context.name == 'h264' and v.codec_context.pix_fmt == 'yuv420p'
        assert len({e.timestamp for e in v.index_entries}) == got['frames'] and c.metadata.get('creation_time') is None

def test_upright_square_even_and_small(tmp_path):
    src = numbered_clip(tmp_path/'a.mp4', n=20, size=(90, 120))
    import imageio_ffmpeg
    ff = [imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-y']
    subprocess.run([*ff, '-display_rotation', '90', '-i', src, '-c', 'copy', tmp_path/'turned.mp4'], check=True)
    subprocess.run([*ff, '-i', src, '-vf', 'setsar=4/3', '-c:v', 'libx264', tmp_path/'wide.mp4'], check=True)
    subprocess.run([*ff, '-i', src, '-vf', 'scale=121:91,format=yuv444p', '-c:v', 'libx264', tmp_path/'odd.mp4'], check=True)
    shown = {n: probe(tmp_path/f'{n}.mp4') for n in ('turned', 'wide', 'odd')}
    assert {k: (v['height'], v['width']) for k, v in shown.items()} == dict(turned=(120, 90), wide=(90, 160), odd=(91, 121))
    made = {n: normalise_clip(tmp_path/f'{n}.mp4', tmp_path/f'{n}_n.mp4', short_side=60) for n in shown}
    assert {k: (v['height'], v['width']) for k, v in made.items()} == dict(turned=(80, 60), wide=(60, 106), odd=(60, 80))
    assert normalise_clip(src, tmp_path/'kept.mp4', short_side=None)['height'] == 90
    assert (read_numbers(frames_of(tmp_path/'wide_n.mp4')) == np.arange(20)).all()

def test_a_playlist_is_not_followed(tmp_path):
    secret = numbered_clip(tmp_path/'secret.mp4', n=5, size=(96, 128))
    (tmp_path/'list.mp4').write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    with pytest.raises(Unavailable, match='not a video'): normalise_clip(tmp_path/'list.mp4', tmp_path/'out.mp4')
    assert not (tmp_path/'out.mp4').exists()

@pytest.mark.new_processes
def test_killable_gives_back_results_errors_and_time():
    assert killable(os.path.join, 'a', 'b') == 'a/b'
    with pytest.raises(FileNotFoundError): killable(os.stat, '/nowhere')
