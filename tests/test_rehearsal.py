"The rehearsal of Kinetics, small: sixty of the real rows, the same server, the same script, killed twice; and real files."
import subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent/'shared'/'data'
sys.path.insert(0, str(ROOT))

real = pytest.mark.skipif(not (DATA/'kinetics').exists(), reason='the Kinetics lists (shared/data/kinetics) are not beside this checkout')
media = pytest.mark.skipif(not (DATA/'media').exists(), reason='the real files (shared/data/media) are not beside this checkout')


@pytest.fixture(scope='module')
def rows():
    from rehearsal.far_end import fates, read_rows
    r = read_rows(60)
    return r, fates(r)


@real
def test_what_becomes_of_an_id_is_drawn_once_and_in_the_right_share():
    from rehearsal.far_end import GONE, MIRROR, YOUTUBE, fates, read_rows
    rows = read_rows()
    fate = fates(rows)
    kinds = {k: sum(f == k for f in fate.values()) for k in set(fate.values())}
    gone = sum(fate[i] == 'gone' for i in rows.youtube_id[rows.split == 'train'].unique())
    assert len(rows) == 14_072 and GONE - 1 <= gone <= GONE and fate == fates(rows.sample(frac=1, random_state=0))
    for k in (*YOUTUBE, *(f'tar-{m}' for m in MIRROR)): assert .006 < kinds[k]/len(fate) < .013, (k, kinds[k])
    assert kinds['fine'] > .75*len(fate)


@real
def test_sixty_rows_through_the_mirror_killed_twice(rows, tmp_path):
    "The notebooks 00 and 01 of the Kinetics study; every row ends as it must, nothing is lost and nothing left over"
    from rehearsal import kinetics
    rows, fate = rows
    ids = sorted(fate)
    fate = fate | dict.fromkeys(ids[::9], 'gone') | dict(zip(ids[1:5], ('tar-empty', 'tar-page', 'tar-cut', 'tar-short')))
    server = kinetics.serve(rows, fate, tmp_path, everything=False)
    try: got = kinetics.download('cvdf', rows, fate, server, tmp_path, jobs=2, results=tmp_path, n_valid=1)
    finally: server.__exit__()
    assert got['rows_not_as_expected'] == 0, got['first_wrong']
    assert got['reasons']['removed'] >= 7 and {'truncated', 'not a video', 'too short'} < set(got['reasons']) and got['reasons']['ok'] > 35
    assert [leg['code'] for leg in got['legs']] == [-9, -9, 0] and got['stored_clips'] == got['reasons']['ok']
    assert not any(got[k] for k in ('files_not_in_the_table', 'clips_without_a_file', 'stored_not_in_the_table', 'damaged_of_200'))
    # the check can fail: with other fates, and with a file that is not what was written
    folder = tmp_path/'cvdf'/'kinetics'
    fine = next(i for i in ids if fate[i] == 'fine' and list((folder/'videos').glob(f'{i}_*')))
    victim = next((folder/'videos').glob(f'{fine}_*'))
    victim.write_bytes(victim.read_bytes()[:-1] + b'?')
    bad = kinetics.check('cvdf', rows, fate | {fine: 'gone'}, folder, got['legs'], tmp_path)
    assert bad['rows_not_as_expected'] == 1 and fine in bad['first_wrong'][0] and bad['damaged_of_200'] == 1


@real
@pytest.mark.parametrize('kind', ['fine', 'gone', 'busy', 'down', 'reset', 'cut', 'page', 'empty', 'slow'])
def test_faults_of_uploads_have_the_reasons_that_are_expected(rows, kind, tmp_path):
    from kinetics_dance.download.sources import YouTube
    from kinetics_dance.core.base import Unavailable
    from kinetics_dance.video.encoding import normalise_clip
    from faults import Faults
    from rehearsal.far_end import Videos, expected, served_uploads
    rows = rows[0][rows[0].time_start.between(20, 50)].head(1)
    i, start, end = rows.youtube_id.iloc[0], rows.time_start.iloc[0], rows.time_end.iloc[0]
    fate = {i: kind}
    with Faults(*served_uploads(rows, fate, Videos(tmp_path), tmp_path)) as server:
        source = YouTube(server.template(), wait=.02, retries=2)
        for _ in range(3): # as often as the downloader asks
            try:
                up = source.fetch(dict(youtube_id=i, time_start=start, time_end=end), tmp_path)
                got = normalise_clip(up.path, tmp_path/'clip.mp4', start - up.start, end - up.start)
                assert abs(got['seconds'] - (end - start)) < .3
                said = 'ok'
                break
            except Unavailable as e: said = e.reason
    assert said == expected(rows, fate, 'youtube')[i]


@media
def test_real_files_are_read_to_their_end_or_refused():
    "Frames counted by ffmpeg, which shares no code with our loop; the page of the site tells of every file"
    import imageio_ffmpeg, re
    from kinetics_dance.core.base import Unavailable
    from kinetics_dance.video.decoding import probe
    from rehearsal.files import PAGE, files
    page = PAGE.read_text(encoding='utf-8')
    for f in files():
        assert f'| `{f.name}` | {f.parent.name} |' in page, f'{f.name}: run python -m rehearsal.files'
        try: n = probe(f)['frames']
        except Unavailable: n = 0
        assert f'| {n:,} |' in next(l for l in page.splitlines() if l.startswith(f'| `{f.name}`'))
        if f.name == 'nasa_13013.mp4': continue # it has two pictures; ffmpeg would take the first, players the larger
        out = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-nostdin', '-i', f, '-map', '0:v:0', '-fps_mode', 'passthrough', '-f', 'null', '-'],
                             capture_output=True, text=True).stderr
        assert n == int((re.findall(r'frame= *(\d+)', out) or [0])[-1]), f.name
