"Tars from strangers: what a header claims is checked before it is believed, and a reader that is told to stop stops."
import gzip, io, tarfile, threading, time
import pytest
from kinetics_dance.core.base import Unavailable
from kinetics_dance.download.cvdf import CVDF, clips_in
from faults import Faults

NAME = 'aaaaaaaaaaa_000000_000003.mp4'
CLIP = dict(clip_id=NAME[:-4], youtube_id='aaaaaaaaaaa', time_start=0., time_end=3., url='train/x.tar.gz')


def tar_with(size=None, name=f'x/{NAME}', data=b'a clip'):
    "A tar of one member, whose header may claim another size"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w', format=tarfile.PAX_FORMAT) as t:
        m = tarfile.TarInfo(name); m.size = len(data)
        if size is not None: m.pax_headers = {'size': str(size)}
        t.addfile(m, io.BytesIO(data))
    return gzip.compress(out.getvalue())


def read(data, folder, stop=None):
    "What becomes of the clip, in a thread, so that a reader that never ends fails the test and does not stop it"
    got, refused = [], {}
    def go():
        try: got.extend(clips_in(io.BytesIO(data), lambda: len(data), {NAME: CLIP}, folder, 200*2**20, refused, lambda line: None, stop))
        except Exception as e: got.append(e)
    t = threading.Thread(target=go, daemon=True)
    t.start(); t.join(20)
    assert not t.is_alive(), 'it spins'
    return got, refused


def test_a_clip(tmp_path):
    (clip, upload), = read(tar_with(), tmp_path)[0]
    assert upload.path.read_bytes() == b'a clip'


@pytest.mark.parametrize('size', [2**62, 2**40, 2**37, -512, -2**40])
def test_a_size_that_cannot_be(tmp_path, size):
    "Bytes that a member claims are not skipped one by one"
    (error,), refused = read(tar_with(size), tmp_path)
    assert isinstance(error, (Unavailable, tarfile.TarError)) and not list(tmp_path.glob('*.mp4'))
    if size > 0: assert error.reason == 'too large'


def test_a_tar_that_ends_early(tmp_path):
    "A member of a gigabyte that is not there"
    got, _ = read(tar_with(2**30, name='x/other.bin'), tmp_path)
    assert isinstance(got[0], Exception)


def test_told_to_stop(tmp_path):
    stop = threading.Event(); stop.set()
    got, _ = read(tar_with(), tmp_path, stop)
    assert type(got[0]).__name__ == 'Stopped'


@pytest.mark.parametrize('keep', [False, True])
def test_through_the_mirror(tmp_path, keep):
    "Streamed, or kept on disk first: the same end, in seconds"
    t0 = time.monotonic()
    with Faults({'/train/x.tar.gz': tar_with(2**62)}) as server:
        source = CVDF(server.url, keep=str(tmp_path/'kept') if keep else None, retries=1, wait=.05, timeout=5, log=lambda line: None)
        (_, error), = source.stream([CLIP], tmp_path, threading.Event())
    assert isinstance(error, Unavailable) and error.reason == 'too large' and time.monotonic() - t0 < 30
