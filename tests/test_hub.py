"Models of a Hugging Face repository, against a server on this machine: published, fetched, used; and what must not be read."
import base64, contextlib, hashlib, json, os, re, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest
from conftest import ROOT
from kinetics_dance.core.base import StudyError
from kinetics_dance.deploy import hub
pytest.importorskip('huggingface_hub', reason="huggingface_hub is not installed: pip install 'kinetics_dance[hub]'")

COMMIT = 'c0ffee' + '0'*34


class Hub:
    "One repository, dance/model; what a client of the hub asks for while it fetches and publishes"
    def __init__(self):
        self.files, self.sizes, self.private, self.tamper, self.asked = {}, {}, False, set(), []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'
            def log_message(self, *args): pass
            def send(self, data=b'{}', code=200, **headers):
                self.send_response(code)
                for k, v in {'Content-Length': len(data), **headers}.items(): self.send_header(k.replace('_', '-'), str(v))
                self.end_headers()
                if self.command != 'HEAD': self.wfile.write(data)
            def do_GET(self):
                hub.asked.append(self.path)
                if hub.private and self.headers.get('Authorization') != 'Bearer secret':
                    return self.send(b'{"error": "x"}', 401, X_Error_Code='RepoNotFound', X_Error_Message='Repository Not Found')
                if self.path.startswith('/api/models/dance/model'):
                    if '/revision/' in self.path and '/nothere' in self.path: return self.send(b'{"error": "x"}', 404, X_Error_Code='RevisionNotFound')
                    rows = [dict(rfilename=n, size=hub.sizes.get(n, len(d)), blobId=hashlib.sha1(b'blob %d\0' % len(d) + d).hexdigest(),
                                 **({'lfs': dict(sha256=hashlib.sha256(d).hexdigest(), size=len(d), pointerSize=1)} if n.endswith('.safetensors') else {}))
                            for n, d in hub.files.items()]
                    return self.send(json.dumps(dict(id='dance/model', sha=COMMIT, siblings=rows)).encode(), Content_Type='application/json')
                if m := re.match(rf'/dance/model/resolve/{COMMIT}/([\w.]+)', self.path):
                    data = hub.files[m[1]]
                    if m[1] in hub.tamper: data = data[:-1] + bytes([data[-1] ^ 1])
                    return self.send(data, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha256(data).hexdigest()}"')
                self.send(b'{"error": "x"}', 404, X_Error_Code='RepoNotFound')
            do_HEAD = do_GET
            def do_POST(self):
                hub.asked.append(self.path)
                body = self.rfile.read(int(self.headers.get('Content-Length') or 0)) if self.headers.get('Content-Length') else self.chunks()
                if self.headers.get('Authorization') != 'Bearer secret': return self.send(b'{"error": "x"}', 401)
                if self.path == '/api/repos/create': return self.send(json.dumps(dict(url=f'{hub.url}/dance/model', id='dance/model')).encode(), Content_Type='application/json')
                if 'validate-yaml' in self.path: return self.send(b'{"errors": [], "warnings": []}', Content_Type='application/json')
                if '/preupload/' in self.path:
                    names = [f['path'] for f in json.loads(body)['files']]
                    return self.send(json.dumps(dict(files=[dict(path=n, uploadMode='regular', shouldIgnore=False) for n in names])).encode(), Content_Type='application/json')
                for line in body.splitlines():
                    v = json.loads(line)
                    if v['key'] == 'file': hub.files[v['value']['path']] = base64.b64decode(v['value']['content'])
                self.send(json.dumps(dict(commitOid=COMMIT, commitUrl=f'{hub.url}/dance/model/commit/{COMMIT}', hookOutput='', success=True)).encode(), Content_Type='application/json')
            def chunks(self):
                data = b''
                while n := int(self.rfile.readline(), 16):
                    data += self.rfile.read(n)
                    self.rfile.readline()
                self.rfile.readline()
                return data

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'


@pytest.fixture
def server(tmp_path, monkeypatch):
    made = Hub()
    monkeypatch.setenv('HF_ENDPOINT', made.url)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    monkeypatch.setenv('HF_HOME', str(tmp_path/'hf'))
    monkeypatch.setenv('HF_HUB_DISABLE_XET', '1')
    monkeypatch.delenv('HF_TOKEN', raising=False)
    with imported_anew('huggingface_hub'): yield made
    made.server.shutdown()


@contextlib.contextmanager
def imported_anew(package):
    "It reads its environment when it is imported, which another test may have done before"
    def taken(): return {m: sys.modules.pop(m) for m in list(sys.modules) if m.split('.')[0] == package}
    before = taken()
    try: yield
    finally:
        taken()
        sys.modules.update(before)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    from test_inference import make_model
    return make_model(tmp_path_factory.mktemp('runs')/'demo/models/cnn_lstm/seed0')


def fill(server, model): server.files = {n: (model/n).read_bytes() for n in hub.MOST}


def refused(text, *words):
    with pytest.raises(StudyError) as e: hub.pull(text)
    line = str(e.value)
    assert '\n' not in line and all(w in line for w in words), line


def test_publish_and_fetch(server, model, monkeypatch):
    "What was published comes back, with a card; then no server is needed"
    monkeypatch.setenv('HF_TOKEN', 'secret')
    assert hub.push(model, 'hf:dance/model', 'cc-by-4.0') == dict(repository='dance/model', revision=COMMIT)
    assert set(server.files) == {'README.md', *hub.MOST}
    card = server.files['README.md'].decode()
    assert card.startswith('---\n') and 'license: "cc-by-4.0"' in card and 'hf:dance/model' in card and '## Limits' in card
    folder = hub.pull('hf:dance/model')
    for name in hub.MOST: assert (folder/name).read_bytes() == (model/name).read_bytes()
    assert {p.name for p in folder.iterdir()} == {*hub.MOST, hub.NOTE} and json.loads((folder/hub.NOTE).read_text())['revision'] == COMMIT
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    assert hub.pull(f'hf:dance/model@{COMMIT}') == folder
    refused('hf:dance/model', 'cannot be reached', f'hf:dance/model@{COMMIT}')


def test_no_token_to_publish(server, model):
    with pytest.raises(StudyError) as e: hub.push(model, 'hf:dance/model')
    assert 'HF_TOKEN' in str(e.value) and '\n' not in str(e.value)


def test_a_pickle_in_the_repository(server, model):
    fill(server, model)
    server.files['pytorch_model.bin'] = b'cos\nsystem\n'
    refused('hf:dance/model', 'pytorch_model.bin', 'a pickle can run code')
    assert not any('/resolve/' in p for p in server.asked), 'nothing was fetched'


def test_a_changed_hash(server, model):
    "On the way, and afterwards on this machine"
    fill(server, model)
    server.tamper = {'model.safetensors'}
    refused('hf:dance/model', 'model.safetensors is not what the hub says')
    server.tamper = set()
    folder = hub.pull('hf:dance/model')
    with (folder/'config.json').open('a') as f: f.write(' ')
    refused(f'hf:dance/model@{COMMIT}', 'config.json was changed', 'delete')


def test_private_missing_and_too_large(server, model):
    fill(server, model)
    server.private = True
    refused('hf:dance/model', 'is private', 'HF_TOKEN')
    server.private = False
    refused('hf:dance/other', 'does not exist')
    refused('hf:dance/model@nothere', 'no such revision')
    server.sizes['model.safetensors'] = 10**12
    refused('hf:dance/model', 'model.safetensors has 1,000,000,000,000 bytes')
    del server.files['config.json']
    server.sizes.clear()
    refused('hf:dance/model', 'has no config.json')


def test_predict_from_the_hub(server, model, tmp_path):
    "The command, in a process of its own"
    from kinetics_dance.synthetic import dancers, uploads
    fill(server, model)
    uploads.write_video(tmp_path/'v.mp4', dancers.render_clip('windmill', 0, 0)[::3], fps=5)
    p = subprocess.run([sys.executable, '-m', 'kinetics_dance.study.cli', 'predict', 'v.mp4', '--model-path', 'hf:dance/model', '--json'],
                       cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=300)
    assert p.returncode == 0 and json.loads(p.stdout)['label'], p.stderr
