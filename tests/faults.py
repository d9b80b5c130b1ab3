"""An HTTP server on 127.0.0.1 that misbehaves on demand: what a platform or a mirror may do to a downloader.

    with Faults({'/a.mp4': video, '/b.mp4': Path('b.mp4')}, {'/a.mp4': Fault(status=503, times=2)}) as server:
        get(server.url + '/a.mp4')      # 503, 503, then the video
    server.hits['/a.mp4']               # 3

A plan gives a path one fault, which lasts (`times=None`) or is shown to the first `times` requests, or a list of faults: they are
used up in turn, then the path is healthy. `Fault()` is no fault, so `[Fault(), Fault(reset=1000)]` spares the first request.
yt-dlp's generic extractor asks twice for each fetch: it looks at the first bytes, then it fetches.
"""
import email.utils, functools, hashlib, mmap, os, re, socket, struct, threading, time
from collections import Counter, namedtuple
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Hit = namedtuple('Hit', 'seconds path range status sent')   # when (monotonic), what was asked for, status given, bytes of body sent
PAGE = b'<!DOCTYPE html><html><head><title>Sorry</title></head><body><p>No video here.</p></body></html>'


@dataclass(frozen=True)
class Fault:
    "What goes wrong with a path. Sizes are bytes of the body of one answer, times are seconds; several may be set together."
    times:int|None = None           # how many requests it is shown to (None: all)
    status:int|None = None          # answer with this status instead of the file: 404, 403, 410, 429, 500, 503 ...
    retry_after:float|None = None   # header Retry-After of that answer
    retry_date:bool = False         # ... written as a date, not as seconds
    delay:float = 0                 # wait before answering at all
    reset:int|None = None           # after so many bytes, reset the connection
    close:int|None = None           # after so many bytes, close the connection (promised length not kept)
    stall:int|None = None           # after so many bytes, say no more and keep the connection open
    longer:int = 0                  # Content-Length promises so many bytes more than there are
    cut:int|None = None             # the file has only its first so many bytes, and the length says so
    html:bool = False               # a page instead of the file, with status 200
    body:bytes|Path|None = None     # other contents, e.g. a valid but shorter clip, or b''
    rate:float|None = None          # bytes a second on each connection
    ranges:bool = True              # are Range requests answered with a part?
    etag:str|None = ''              # '': made from the contents; a text: that; None: no ETag and no Last-Modified
    length:bool = True              # is a Content-Length sent? (if not, the end of the connection ends the body)
    headers:dict = field(default_factory=dict)  # more headers


class Faults:
    "The server: `url` is its address; `template(ending)` that of an upload, with `{id}`; `hits`, `log` and `peak` say what was asked of it"
    def __init__(self,
                 bodies,        # {'/path': bytes or Path}, or a folder whose files are served
                 plan=None,     # {'/path': Fault or [Fault ...]}; '*' is for all paths that are not named
                 rate=None,     # bytes a second on each connection, for all paths
                 port=0,        # 0: one that is free
                ):
        self.bodies, self.plan, self.rate, self.port = bodies, dict(plan or {}), rate, port
        self.hits, self.log, self.now, self.peak = Counter(), [], 0, 0     # now, peak: answers being sent at a time
        self.lock, self.stopping = threading.Lock(), threading.Event()

    def __enter__(self):
        self._server = ThreadingHTTPServer(('127.0.0.1', self.port), functools.partial(_Handler, self))
        self._server.handle_error = lambda *_: None       # a client that hangs up is what this is for
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        self._thread = threading.Thread(target=self._server.serve_forever, args=(.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def template(self, ending='.mp4'): return f'{self.url}/{{id}}{ending}'

    def forget(self):
        "Start counting anew; the plan goes on where it was"
        with self.lock:
            self.hits.clear()
            self.log.clear()
            self.peak = self.now

    def times_of(self, path): return [h.seconds for h in self.log if h.path == path]

    def _body(self, path):
        body = self.bodies.get(path) if isinstance(self.bodies, dict) else Path(self.bodies)/path.lstrip('/')
        if not isinstance(self.bodies, dict) and (not body.is_file() or '..' in body.parts): return None
        return body

    def _next(self, path):
        "The fault that this request to `path` gets, and one request less in the plan"
        with self.lock:
            self.hits[path] += 1
            key = path if path in self.plan else '*'
            todo = self.plan.get(key)
            if todo is None: return Fault()
            first = key == '*' # each path has its own count
            todo = list(todo) if isinstance(todo, (list, tuple)) else [todo]
            if not todo: return Fault()
            fault, rest = todo[0], todo[1:]
            in_list = isinstance(self.plan[key], (list, tuple))
            left = fault.times if fault.times is not None else 1 if in_list else None
            if left is not None:
                rest = [replace(fault, times=left - 1), *rest] if left > 1 else rest
                self.plan[path] = rest
            elif first: self.plan[path] = fault
            return fault

    def _note(self, hit):
        with self.lock: self.log.append(hit)

    def _busy(self, n):
        with self.lock:
            self.now += n
            self.peak = max(self.peak, self.now)


def contents(body):
    "Bytes and a name of their state; a file is mapped, not read: it may be large"
    if isinstance(body, bytes): return memoryview(body), hashlib.sha1(body).hexdigest()
    with open(body, 'rb') as f:
        at = os.fstat(f.fileno())
        return memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if at.st_size else b''), f'{at.st_size}-{at.st_mtime_ns}'


class _Handler(BaseHTTPRequestHandler):
    protocol_version, timeout = 'HTTP/1.1', 30
    def __init__(self, faults, *args):
        self.faults = faults
        super().__init__(*args)
    def log_message(self, *_): pass
    def do_HEAD(self): self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        fault = self.faults._next(path)
        self.path_, self.asked, self.sent, self.start = path, self.headers.get('Range'), 0, time.monotonic()
        self.faults._busy(1)
        try: self.answer(fault, fault.body if fault.body is not None else self.faults._body(path))
        except OSError: self.close_connection = True
        finally:
            self.faults._busy(-1)
            self.faults._note(Hit(self.start, path, self.asked, getattr(self, 'status', None), self.sent))

    def answer(self, fault, body):
        self.faults.stopping.wait(fault.delay)
        kind = 'video/mp4' if self.path_.endswith('.mp4') else 'application/octet-stream'
        if fault.status or body is None:
            retry = {} if fault.retry_after is None else {'Retry-After': email.utils.formatdate(time.time() + fault.retry_after + .999, usegmt=True)
                                                          if fault.retry_date else f'{fault.retry_after:g}'}
            return self.say(fault.status or 404, {'Content-Type': 'text/html', **retry, **fault.headers}, fault, PAGE)
        if fault.html: return self.say(200, {'Content-Type': 'text/html; charset=utf-8', **fault.headers}, fault, PAGE)
        data, made = contents(body)
        data, tag = data[:fault.cut], f'"{made}-{fault.cut}"' if fault.etag == '' else fault.etag
        head = {'Content-Type': kind, **({'ETag': tag} if tag else {}), 'Accept-Ranges': 'bytes' if fault.ranges else 'none', **fault.headers}
        part = re.fullmatch(r'bytes=(\d+)-(\d*)', self.asked or '') if fault.ranges else None
        if part and self.headers.get('If-Range', tag) != tag: part = None
        if not part: return self.say(200, head, fault, data)
        first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
        if first >= len(data): return self.say(416, {**head, 'Content-Range': f'bytes */{len(data)}'}, fault, b'')
        self.say(206, {**head, 'Content-Range': f'bytes {first}-{last}/{len(data)}'}, fault, data[first:last+1])

    def say(self, status, headers, fault, data):
        self.status = status
        self.send_response(status)
        for k, v in headers.items(): self.send_header(k, v)
        if fault.length: self.send_header('Content-Length', str(len(data) + fault.longer))
        if fault.longer or not fault.length: self.close_connection = True
        self.end_headers()
        if self.command == 'HEAD': return
        ends = [n for n in (fault.reset, fault.close, fault.stall) if n is not None]
        self.send(data[:min(ends)] if ends else data, fault.rate or self.faults.rate)
        if fault.stall is not None: self.faults.stopping.wait(60)
        if ends: self.close_connection = True
        if fault.reset is not None: # no polite goodbye: a closed socket that does not linger sends RST
            time.sleep(.05)         # what was sent arrives first
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            os.close(self.connection.detach())

    def send(self, data, rate):
        step = max(1, int(rate/20)) if rate else 1 << 16
        start = time.monotonic()
        for k in range(0, len(data), step):
            if self.faults.stopping.is_set(): raise ConnectionAbortedError
            if rate: self.faults.stopping.wait(max(0, start + k/rate - time.monotonic()))
            self.wfile.write(data[k:k+step])
            self.sent += len(data[k:k+step])
