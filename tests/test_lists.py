"Lists from strangers: whatever the bytes, a table or one line; no memory without a limit, no other place than files and the web."
import gzip, io, json, tarfile, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from kinetics_dance.clips import annotations
from kinetics_dance.clips.annotations import read_annotations, read_folder
from kinetics_dance.core.base import StudyError

HEAD = 'label,youtube_id,time_start,time_end,split\n'
ROW = 'tap dancing,aaaaaaaaaaa,0,10,train\n'


def entry(**kw): return json.dumps({'aaaaaaaaaaa': dict(annotations=dict(label='tap dancing', segment=[0, 10]), subset='train') | kw})


def tgz(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:gz') as t:
        for name, data in members:
            m = tarfile.TarInfo(name); m.size = len(data); t.addfile(m, io.BytesIO(data))
    return out.getvalue()


def negative(n):
    "A header whose size is below nothing (CVE-2025-8194)"
    b = bytearray(tarfile.TarInfo('a.csv').tobuf(tarfile.GNU_FORMAT))
    b[124:136] = bytes([0o377]) + (256**11 - n).to_bytes(11, 'big')
    b[148:156] = b' '*8; b[148:156] = b'%06o\0 ' % sum(b[:512])
    return gzip.compress(bytes(b)*2 + b'\0'*1024)


WRONG = {
 'deep.json': ('['*200_000 + ']'*200_000, 'nested too deeply'), 'shape.json': ('[1]', 'not a Kinetics list'), 'text.json': ('x', 'cannot be read'),
 'segment_null.json': (entry(annotations=dict(label='x', segment=None)), 'segment is not a list of two'), 'segment_five.json': (entry(annotations=dict(label='x', segment=5)), 'segment'),
 'segment_one.json': (entry(annotations=dict(label='x', segment=[1])), 'segment'), 'notes_text.json': (entry(annotations='x'), 'annotations is not a mapping'),
 'notes_list.json': (entry(annotations=[1]), 'annotations is not a mapping'), 'label_list.json': (entry(annotations=dict(label=['x'], segment=[0, 1])), 'label is'),
 'label_number.json': (entry(annotations=dict(label=5, segment=[0, 1])), 'label is 5, not text'), 'subset_list.json': (entry(subset=['train']), 'subset'),
 'infinite.json': (entry(annotations=dict(label='x', segment=[0, float('inf')])), 'not a time'), 'infinite.csv': (HEAD + 'x,aaaaaaaaaaa,0,inf,train\n', 'time_end is not a time'),
 'far.csv': (HEAD + 'x,aaaaaaaaaaa,0,1e300,train\n', 'line 2: time_end is not a time'), 'nul.csv': (HEAD + 'x,aaa\0aaaaaaa,0,10,train\n', ''),
 'twice.csv': ('label,label,youtube_id,time_start,time_end,split\na,b,aaaaaaaaaaa,0,10,train\n', 'column label is there twice'),
 'comma.csv': (HEAD + 'tap, dancing,aaaaaaaaaaa,0,10,train\n', 'line 2 has 6 fields, the head 5'), 'comma_later.csv': (HEAD + ROW*3 + 'tap, dancing,aaaaaaaaaaa,0,10,train\n', 'line 5 has 6 fields, the head 5'),
 'long.csv': (HEAD + 'x'*3_000_000 + ',aaaaaaaaaaa,0,10,train\n', 'more than 1,000 letters'), 'newline.csv': (HEAD + '"a\nb",aaaaaaaaaaa,0,10,train\n', 'control character'),
 'escape.csv': (HEAD + 'a\x1b[31m,aaaaaaaaaaa,0,10,train\n', 'line 2: the label holds a control character'), 'quotes.csv': (HEAD + '"tap dancing,aaaaaaaaaaa,0,10,train\n', ''),
 'empty.csv': ('', 'cannot be read'), 'head.csv': (HEAD, 'no rows'), 'none.json': ('{}', 'no rows'), 'utf16.csv': ((HEAD + ROW).encode('utf-16'), ''),
 'negative.tar.gz': (negative(1024), 'is said to have -1024 bytes'), 'far_negative.tar.gz': (negative(2**40), 'is said to have'), 'nothing.tar.gz': (tgz(), 'no .csv or .json'),
 'zip.tar.gz': (b'PK\3\4' + b'0'*100, 'cannot be read'), 'cut.tar.gz': (tgz(('a.csv', (HEAD + ROW).encode()))[:-30], ''),
}


@pytest.mark.parametrize('name', WRONG)
def test_one_line(tmp_path, name):
    text, says = WRONG[name]
    (tmp_path/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    t0 = time.monotonic()
    with pytest.raises(StudyError) as e: read_annotations(tmp_path/name)
    assert says in str(e.value) and name in str(e.value) and len(str(e.value).splitlines()) == 1 and len(str(e.value)) < 700
    assert time.monotonic() - t0 < 20       # one of them never ended


@pytest.mark.parametrize('text', ['\ufeff' + HEAD + ROW, HEAD + ROW.replace('\n', '\r\n'), HEAD.strip() + ',\n' + ROW.strip() + ',\n', HEAD + ' tap dancing ,aaaaaaaaaaa,0,10,train\n',
                                  HEAD + '\n\n' + ROW, 'label, youtube_id ,time_start,time_end,split\n' + ROW])
def test_what_is_read(tmp_path, text):
    "A byte order mark, other line ends, commas at the end of all rows, spaces around a name"
    (tmp_path/'a.csv').write_text(text, encoding='utf-8', newline='')
    assert read_annotations(tmp_path/'a.csv').label.tolist() == ['tap dancing']


def test_an_archive_is_unpacked_up_to_a_limit(tmp_path, monkeypatch):
    "300 MB of rows in a file of 1 MB"
    (tmp_path/'bomb.tar.gz').write_bytes(gzip.compress(b'\0'*2**20, 9)*300)
    with pytest.raises(StudyError, match='more than 268 MB'): read_annotations(tmp_path/'bomb.tar.gz')
    monkeypatch.setattr(annotations, 'MOST_ROWS', 10)
    (tmp_path/'rows.csv').write_text(HEAD + ROW*11)
    with pytest.raises(StudyError, match='more than 10 lines'): read_annotations(tmp_path/'rows.csv')


@pytest.mark.parametrize('address', ['file:///etc/passwd', 'data:text/csv,' + HEAD, 'ftp://127.0.0.1:9/x.csv', 'gopher://127.0.0.1/x.csv'])
def test_lists_come_from_files_and_the_web_only(address):
    with pytest.raises(StudyError, match='is no address of a list'): read_annotations(address)


@pytest.fixture
def server():
    "Answers without an end, drop by drop, and answers that lead elsewhere"
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_GET(self):
            self.send_response(302 if 'to' in self.path else 200)
            if 'to' in self.path: self.send_header('Location', 'file:///etc/hostname')
            self.end_headers()
            try:
                while 'endless' in self.path: self.wfile.write(b'a'*2**20)
                while 'slow' in self.path: self.wfile.write(b'a'); time.sleep(.05)
            except OSError: pass
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler); s.daemon_threads = True
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{s.server_port}'
    s.shutdown(); s.server_close()


def test_bodies_have_an_end(server, monkeypatch):
    monkeypatch.setattr(annotations, 'LARGEST', 2**24)
    monkeypatch.setattr(annotations, 'PATIENCE', 1)
    with pytest.raises(StudyError, match='more than 17 MB'): read_annotations(f'{server}/endless.csv')
    with pytest.raises(StudyError, match='takes longer'): read_annotations(f'{server}/slow.csv')
    with pytest.raises(StudyError, match='cannot be read'): read_annotations(f'{server}/to.csv')


SMALL = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
texts = st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda s: (HEAD + s).encode('utf-8', 'replace')),
                  st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=8), lambda x: st.lists(x, max_size=3) | st.dictionaries(
                      st.sampled_from(['annotations', 'label', 'segment', 'subset', 'a']), x, max_size=4), max_leaves=12).map(lambda x: json.dumps(x).encode()))


@SMALL
@given(texts, st.sampled_from(['csv', 'json', 'tar.gz', 'inside']))
def test_any_bytes_are_a_table_or_one_line(tmp_path_factory, data, ending):
    folder = tmp_path_factory.getbasetemp()
    if ending == 'inside': data, ending = tgz(('a.csv', data), ('b.json', data)), 'tar.gz'
    (folder/f'any.{ending}').write_bytes(data)
    try: assert len(read_annotations(folder/f'any.{ending}'))
    except StudyError as e: assert len(str(e).splitlines()) == 1


@SMALL
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda s: ('path,label\n' + s).encode('utf-8', 'replace'))))
def test_any_folder_list_is_a_table_or_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    (folder/'list.csv').write_bytes(data)
    try: read_folder(folder, csv=folder/'list.csv')
    except StudyError as e: assert len(str(e).splitlines()) == 1
