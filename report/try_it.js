// @ts-check
// The page Try it yourself: the study's own models on frames that the reader puts into an order.
// Types: npx -p typescript@5 tsc --allowJs --checkJs --strict --noEmit --target es2022 --lib es2022,dom,dom.iterable report/try_it.js
// Form: npx prettier@3 --print-width 120 --single-quote --write report/try_it.js
(() => {
  'use strict';

  /** @typedef {{name: string, title: string, order: boolean}} Model */
  /** @typedef {{mean: number, low: number, high: number} | null} Score */
  /** @typedef {{classes: string[], frames: number, crop: [number, number], box: [number, number], seconds: number, stored: number,
   *   at: number[], clips: [number, number][], guesses: [number, number][], models: Model[],
   *   scores: {title: string, still: Score, clip: Score}[], sizes: Record<string, number>}} Study */

  /** @param {string} id @returns {any} */
  const byId = (id) => document.getElementById(id);
  const root = byId('try-it');
  if (!root) return;
  /** @type {Study} */
  const study = JSON.parse(root.dataset.study);
  const [height, width] = study.crop;
  const frameBytes = height * width * 3;
  const folder = /** @type {HTMLScriptElement} */ (document.currentScript).src.replace(/[^/]*$/, '');
  const longest = 120; // seconds of a video that are watched

  /** @param {string} tag @param {Record<string, any>} [set] @param {...(Node | string)} inside @returns {any} */
  function element(tag, set = {}, ...inside) {
    const e = document.createElement(tag);
    for (const [k, v] of Object.entries(set)) {
      if (k in e) /** @type {any} */ (e)[k] = v;
      else e.setAttribute(k, v);
    }
    e.append(...inside);
    return e;
  }

  /** @param {HTMLElement} where @param {string} text @param {boolean} [bad] */
  function say(where, text, bad = false) {
    where.classList.toggle('try-error', bad);
    where.textContent = text;
  }

  /** @param {unknown} e */
  const reason = (e) => (e instanceof Error ? e.message : String(e));
  /** @param {number} p */
  const percent = (p) => `${(100 * p).toFixed(1)} %`;

  // Parts of the page come as scripts, the only files that a page opened from a folder may load.
  /** @type {Map<string, string>} */
  const parts = new Map();

  /** @param {string} file @returns {Promise<void>} */
  function script(file) {
    return new Promise((done, fail) => {
      const s = element('script', { src: folder + file });
      s.onload = () => done();
      s.onerror = () => fail(new Error(`${file} cannot be loaded; it belongs into the folder of this site`));
      document.head.append(s);
    });
  }

  /** @param {string} name @returns {Promise<Uint8Array>} */
  async function bytes(name) {
    await script(`${name}.js`);
    const text = parts.get(name);
    parts.delete(name);
    if (text === undefined) throw new Error(`${name}.js is damaged`);
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // ---- the models

  /** @type {Map<string, any>} */
  const sessions = new Map();
  /** @type {Uint8Array} */
  let clips;
  /** @type {Promise<void> | null} */
  let loading = null;

  async function loadAll() {
    if (typeof WebAssembly !== 'object') throw new Error('this browser has no WebAssembly, which the models need');
    if (typeof DecompressionStream !== 'function') throw new Error('this browser is too old to unpack the models');
    await script('runtime.js');
    const ort = /** @type {any} */ (globalThis).ort;
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.proxy = false;
    ort.env.wasm.wasmBinary = (await bytes('wasm')).buffer;
    for (const m of study.models) {
      const graph = await bytes(`model-${m.name}`);
      sessions.set(m.name, await ort.InferenceSession.create(graph, { executionProviders: ['wasm'] }));
    }
    clips = await bytes('clips');
  }

  /** Load what is needed, once; after a failure it may be tried again. */
  function load() {
    if (!loading) {
      const began = performance.now();
      byId('try-load').disabled = true;
      say(byId('try-status'), 'Loading the models …');
      loading = loadAll().then(
        () => {
          const seconds = ((performance.now() - began) / 1000).toFixed(1);
          say(byId('try-status'), `${study.models.length} models are loaded (${seconds} s).`);
          byId('try-load').hidden = true;
          begin();
        },
        (e) => {
          loading = null;
          byId('try-load').disabled = false;
          say(byId('try-status'), `The models cannot run here: ${reason(e)}.`, true);
          throw e;
        },
      );
    }
    return loading;
  }

  /** Probabilities of some clips: one row of classes for each.
   * @param {string} model @param {Uint8Array} frames RGB, (clips, frames, height, width, 3) @returns {Promise<Float32Array[]>} */
  async function ask(model, frames) {
    const ort = /** @type {any} */ (globalThis).ort;
    const n = frames.length / (study.frames * frameBytes);
    const input = new ort.Tensor('uint8', frames, [n, study.frames, height, width, 3]);
    const out = (await sessions.get(model).run({ frames: input })).probabilities.data;
    const k = study.classes.length;
    return Array.from({ length: n }, (_, i) => out.slice(i * k, i * k + k));
  }

  /** @param {HTMLCanvasElement} canvas @param {Uint8Array} rgb */
  function draw(canvas, rgb) {
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const image = new ImageData(width, height);
    for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) {
      image.data[j] = rgb[i];
      image.data[j + 1] = rgb[i + 1];
      image.data[j + 2] = rgb[i + 2];
      image.data[j + 3] = 255;
    }
    /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d')).putImageData(image, 0, 0);
  }

  // ---- shuffle it yourself

  let clip = 0;
  let chosen = 0;
  /** @type {number[]} which stored frames are shown, in order */
  let row = [];
  /** @type {Record<string, Float32Array>} */
  let filmed = {};
  let turn = 0;
  let shown = 0;
  let timer = 0;

  /** @param {number} i @param {Uint8Array} [from] @param {number} [which] */
  const frame = (i, from = clips, which = clip) =>
    from.subarray((which * study.stored + i) * frameBytes, (which * study.stored + i + 1) * frameBytes);

  /** A row stretched over the places that a model has. @param {number[]} some @param {number} n */
  const stretch = (some, n) => Array.from({ length: n }, (_, i) => some[Math.floor(((i + 0.5) * some.length) / n)]);

  /** @param {number[]} order */
  function gather(order) {
    const out = new Uint8Array(study.frames * frameBytes);
    stretch(order, study.frames).forEach((i, k) => out.set(frame(i), k * frameBytes));
    return out;
  }

  function begin() {
    const choice = byId('try-choice');
    study.clips.forEach(([c], i) => choice.append(element('option', { value: String(i) }, study.classes[c])));
    choice.addEventListener('change', () => choose(Number(choice.value)));
    byId('try-clip').hidden = false;
    document.querySelectorAll('.try-steps button').forEach((b) => b.removeAttribute('disabled'));
    choose(0);
  }

  /** @param {number} i */
  function choose(i) {
    clip = i;
    filmed = {};
    document.querySelectorAll('.try-found').forEach((e) => (e.textContent = ''));
    say(byId('try-said'), '');
    const [mine, rival] = study.clips[clip].map((c) => study.classes[c]);
    byId('try-bars').replaceChildren(
      ...study.models.map((m) =>
        element(
          'div',
          { id: `try-of-${m.name}` },
          element('h3', {}, m.title),
          element('dl', {}, ...bar(mine, ''), ...bar(rival, 'try-rival')),
        ),
      ),
    );
    change(study.at.slice(), '');
  }

  /** @param {string} name @param {string} kind */
  function bar(name, kind) {
    const track = element(
      'div',
      { className: 'try-track' },
      element('div', { className: 'try-fill' }),
      element('div', { className: 'try-mark', hidden: true }),
    );
    return [
      element('dt', {}, name + (kind ? ' (rival)' : ' (true)')),
      element('dd', { className: kind }, track, element('span', { className: 'try-number' })),
    ];
  }

  /** Show a row of frames and ask the models. @param {number[]} order @param {string} by */
  async function change(order, by, focus = false) {
    const mine = ++turn;
    row = order;
    chosen = Math.min(chosen, row.length - 1);
    drawRow(focus);
    const began = performance.now();
    const data = gather(row);
    /** @type {Record<string, Float32Array>} */
    const found = {};
    try {
      for (const m of study.models) {
        found[m.name] = (await ask(m.name, data))[0];
        if (mine !== turn) return;
      }
    } catch (e) {
      return say(byId('try-said'), `The models gave no answer: ${reason(e)}.`, true);
    }
    if (!by) filmed = found;
    drawBars(found);
    root.dataset.milliseconds = String(Math.round(performance.now() - began));
    root.dataset.turn = String(mine);
    if (by) tell(found, by);
  }

  /** @param {Record<string, Float32Array>} found */
  function drawBars(found) {
    for (const m of study.models) {
      const rows = byId(`try-of-${m.name}`).querySelectorAll('dd');
      study.clips[clip].forEach((c, k) => {
        rows[k].querySelector('.try-fill').style.width = `${100 * found[m.name][c]}%`;
        rows[k].querySelector('.try-number').textContent = percent(found[m.name][c]);
        const mark = rows[k].querySelector('.try-mark');
        mark.hidden = false;
        mark.style.left = `calc(${100 * filmed[m.name][c]}% - 1px)`;
      });
    }
  }

  /** What changed, in a sentence; beside the step that asked for it, too.
   * @param {Record<string, Float32Array>} found @param {string} by */
  function tell(found, by) {
    const [mine, rival] = study.clips[clip];
    const sentence = study.models
      .map((m) => {
        const [now, then] = [found[m.name][mine], filmed[m.name][mine]];
        if (by === 'filmed') return `${m.title}: ${percent(now)} true, ${percent(found[m.name][rival])} rival`;
        return Math.abs(now - then) < 5e-4
          ? `${m.title} does not move`
          : `${m.title}: true class from ${percent(then)} to ${percent(now)}`;
      })
      .join('; ');
    say(byId('try-said'), `${sentence}.`);
    const step = document.querySelector(`[data-step="${by}"] .try-found`);
    if (step) step.textContent = `Found: ${sentence}.`;
  }

  function drawRow(focus = false) {
    const list = byId('try-row');
    list.replaceChildren(
      ...row.map((i, k) => {
        const canvas = element('canvas');
        draw(canvas, frame(i));
        const place = study.at.indexOf(i) + 1;
        const name = place ? `frame ${place}` : `stored frame ${i + 1}`;
        const b = element(
          'button',
          { type: 'button', tabIndex: k === chosen ? 0 : -1 },
          canvas,
          String(place || `(${i + 1})`),
        );
        b.setAttribute('aria-label', `${name}, at place ${k + 1} of ${row.length}`);
        b.setAttribute('aria-pressed', String(k === chosen));
        return element('li', {}, b);
      }),
    );
    if (focus) list.children[chosen].firstChild.focus();
    shown = 0;
    drawScreen();
  }

  function drawScreen() {
    draw(byId('try-screen'), frame(row[shown % row.length]));
  }

  /** @param {number} k */
  function pick(k) {
    chosen = Math.max(0, Math.min(row.length - 1, k));
    [...byId('try-row').children].forEach((li, i) => {
      li.firstChild.setAttribute('aria-pressed', String(i === chosen));
      li.firstChild.tabIndex = i === chosen ? 0 : -1;
    });
    shown = chosen;
    drawScreen();
  }

  /** The row with the frame at `from` moved to `to`. @param {number} from @param {number} to */
  function moved(from, to) {
    const out = row.slice();
    out.splice(Math.max(0, Math.min(row.length - 1, to)), 0, ...out.splice(from, 1));
    return out;
  }

  /** @param {number[]} some */
  function shuffled(some) {
    if (new Set(some).size < 2) return some.slice();
    const out = some.slice();
    do {
      for (let i = out.length - 1; i > 0; i--) {
        const j = Math.floor(Math.random() * (i + 1));
        [out[i], out[j]] = [out[j], out[i]];
      }
    } while (out.every((x, i) => x === some[i]));
    return out;
  }

  /** @type {Record<string, (focus: boolean) => void>} */
  const actions = {
    play: () => play(!timer),
    filmed: () => change(study.at.slice(), 'filmed'),
    reverse: () => change(row.slice().reverse(), 'reverse'),
    shuffle: () => change(shuffled(row), 'shuffle'),
    repeat: (focus) =>
      change(
        row.map(() => row[chosen]),
        'repeat',
        focus,
      ),
    speed: () =>
      change(
        row.map((_, i) => row[(i % Math.ceil(row.length / 2)) * 2]),
        'speed',
      ),
    left: () => step(-1),
    right: () => step(1),
    drop: (focus) => {
      if (row.length > 1)
        change(
          row.filter((_, i) => i !== chosen),
          'drop',
          focus,
        );
      else say(byId('try-said'), 'One frame has to stay.');
    },
  };

  /** @param {number} by */
  function step(by, focus = false) {
    const to = Math.max(0, Math.min(row.length - 1, chosen + by));
    const order = moved(chosen, to);
    chosen = to;
    change(order, 'move', focus);
  }

  /** @param {boolean} on */
  function play(on) {
    clearInterval(timer);
    timer = on
      ? window.setInterval(
          () => {
            shown += 1;
            drawScreen();
          },
          (1000 * study.seconds) / study.frames,
        )
      : 0;
    const b = /** @type {HTMLElement} */ (document.querySelector('[data-do=play]'));
    b.textContent = on ? 'Pause' : 'Play';
    b.setAttribute('aria-pressed', String(on));
  }

  document.addEventListener('click', (e) => {
    const b = /** @type {HTMLElement} */ (e.target).closest('[data-do]');
    // a step begins with the clip as it was filmed, whatever was done before
    if (b && b.closest('.try-steps')) row = study.at.slice();
    if (b) actions[/** @type {string} */ (/** @type {HTMLElement} */ (b).dataset.do)](false);
  });

  const list = byId('try-row');
  list.addEventListener('keydown', (/** @type {KeyboardEvent} */ e) => {
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[e.key];
    if (by && e.altKey) step(by, true);
    else if (by) {
      pick(chosen + by);
      list.children[chosen].firstChild.focus();
    } else if (e.key === 'Home' || e.key === 'End') {
      pick(e.key === 'Home' ? 0 : row.length - 1);
      list.children[chosen].firstChild.focus();
    } else if (e.key === 'Enter') actions.repeat(true);
    else if (e.key === 'Delete' || e.key === 'Backspace') actions.drop(true);
    else return;
    e.preventDefault();
  });

  // A frame is dragged by mouse, pen or finger; it moves to the place that it is let go on.
  /** @type {{from: number, moved: boolean, li: any} | null} */
  let drag = null;
  /** @param {Element | null} e */
  const placeOf = (e) => [...list.children].indexOf(/** @type {any} */ (e && e.closest('#try-row > li')));
  list.addEventListener('pointerdown', (/** @type {PointerEvent} */ e) => {
    const from = placeOf(/** @type {Element} */ (e.target));
    if (from < 0 || e.button) return;
    pick(from);
    drag = { from, moved: false, li: list.children[from] };
  });
  document.addEventListener('pointermove', (e) => {
    if (!drag) return;
    const to = placeOf(document.elementFromPoint(e.clientX, e.clientY));
    const at = placeOf(drag.li);
    if (to < 0 || to === at) return;
    drag.moved = true;
    drag.li.classList.add('moving');
    list.insertBefore(drag.li, to > at ? list.children[to].nextSibling : list.children[to]);
  });
  const letGo = () => {
    if (!drag) return;
    const { from, moved: yes, li } = drag;
    const to = placeOf(li);
    drag = null;
    if (!yes) return;
    const order = moved(from, to);
    chosen = to;
    change(order, 'move', true);
  };
  document.addEventListener('pointerup', letGo);
  document.addEventListener('pointercancel', letGo);

  byId('try-load').addEventListener('click', () => load().catch(() => {}));

  // ---- guess first

  /** Wilson's 95 % interval of a share. @param {number} right @param {number} n @returns {[number, number]} */
  function wilson(right, n) {
    const z = 1.959964;
    const p = right / n;
    const middle = (p + (z * z) / (2 * n)) / (1 + (z * z) / n);
    const half = (z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n))) / (1 + (z * z) / n);
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  }

  /** @type {Uint8Array} */
  let films;
  /** @type {number[]} clips that are still to be guessed, the one that is shown first */
  let left = [];
  let filmTimer = 0;
  const mine = { still: [0, 0], clip: [0, 0] }; // right, asked

  async function startGuessing() {
    const b = byId('try-start');
    b.disabled = true;
    try {
      films = films || (await bytes('guess'));
    } catch (e) {
      b.disabled = false;
      return say(byId('try-question'), reason(e), true);
    }
    b.hidden = true;
    left = shuffled(study.guesses.map((_, i) => i));
    byId('try-round').hidden = false;
    question(true);
  }

  /** Ask about the clip at hand: by one frame of it, then by all. @param {boolean} still */
  function question(still) {
    clearInterval(filmTimer);
    const which = left[0];
    const [truth, other] = study.guesses[which];
    let at = still ? Math.floor(Math.random() * study.stored) : 0;
    const show = () => draw(byId('try-film'), frame(at % study.stored, films, which));
    show();
    if (!still)
      filmTimer = window.setInterval(
        () => {
          at += 1;
          show();
        },
        (1000 * study.seconds) / study.stored,
      );
    const nth = study.guesses.length - left.length + 1;
    say(
      byId('try-question'),
      `Clip ${nth} of ${study.guesses.length}, ${still ? 'a single frame' : 'the clip it is from'}: which class is it?`,
    );
    const answers = [truth, other]
      .sort((a, b) => a - b)
      .map((c) => {
        const b = element('button', { type: 'button' }, study.classes[c]);
        b.addEventListener('click', () => answer(still, c === truth));
        return b;
      });
    byId('try-answers').replaceChildren(...answers);
  }

  /** @param {boolean} still @param {boolean} right */
  function answer(still, right) {
    const score = still ? mine.still : mine.clip;
    score[0] += Number(right);
    score[1] += 1;
    if (still) question(false);
    else {
      const truth = study.classes[study.guesses[left[0]][0]];
      left.shift();
      scores();
      if (left.length) question(true);
      else {
        clearInterval(filmTimer);
        byId('try-answers').replaceChildren();
      }
      const now = byId('try-question').textContent;
      say(
        byId('try-question'),
        `${right ? 'Right' : 'Wrong'}: it was ${truth}. ${left.length ? now : 'That was the last one.'}`,
      );
    }
    const next = byId('try-answers').querySelector('button');
    if (next) next.focus();
  }

  function scores() {
    /** @param {Score} s */
    const text = (s) => (s ? `${percent(s.mean)} [${percent(s.low)}, ${percent(s.high)}]` : 'not asked');
    /** @param {number[]} s */
    const own = (s) => {
      const [low, high] = wilson(s[0], s[1]);
      return `${s[0]} of ${s[1]}, ${text({ mean: s[0] / s[1], low, high })}`;
    };
    const rows = [
      ['you', own(mine.still), own(mine.clip)],
      ...study.scores.map((s) => [s.title, text(s.still), text(s.clip)]),
    ];
    const cells = rows.map(([who, ...x]) =>
      element('tr', {}, element('th', { scope: 'row' }, who), ...x.map((v) => element('td', {}, v))),
    );
    const head = element(
      'tr',
      {},
      ...['', 'by a single frame', 'by the clip'].map((v) =>
        v ? element('th', { scope: 'col' }, v) : element('td', {}),
      ),
    );
    const table = element('table', {}, element('thead', {}, head), element('tbody', {}, ...cells));
    byId('try-scores').replaceChildren(
      element(
        'div',
        { className: 'try-scroll', tabIndex: 0, role: 'region', ariaLabel: 'Your score and the models’' },
        table,
      ),
    );
  }

  byId('try-start').addEventListener('click', startGuessing);

  // ---- drop a video

  const watched = byId('try-watched');
  let watching = 0;

  /** Starts of the windows of a video and the seconds of their frames, as the library has them; neighbours share frames.
   * @param {number} length @returns {{starts: number[], at: number[][]}} */
  function windows(length) {
    const apart = (Math.max(1, Math.round(study.frames / 4)) * study.seconds) / study.frames;
    const starts = Array.from(
      { length: Math.max(1, Math.floor((length - study.seconds) / apart + 1e-6) + 1) },
      (_, i) => i * apart,
    );
    if (length - study.seconds > starts[starts.length - 1] + 0.05) starts.push(length - study.seconds);
    const seen = Math.min(study.seconds, length);
    return {
      starts,
      at: starts.map((s) => Array.from({ length: study.frames }, (_, k) => s + ((k + 0.5) / study.frames) * seen)),
    };
  }

  // A frame becomes what the library makes of it. Its Y, U and V are scaled and converted as ffmpeg's swscale does it, in the
  // same whole numbers: the colours of two neighbours are one, and all is 1.5 levels darker than the textbook has it.

  /** @typedef {{data: Uint8Array | Uint8ClampedArray, at: number, stride: number, step: number, width: number, height: number}} Plane */
  /** @typedef {{planes: Plane[], matrix: string, full: boolean, turn: number}} Picture  `turn`: by how many quarters, clockwise */

  /** Which inputs make an output, and by how much, along one side: a triangle of whole numbers that add up to `one`.
   * @param {number} from @param {number} to @param {number} offset @param {number} count @param {number} one
   * @returns {[number, number][][]} */
  function triangle(from, to, offset, count, one) {
    const step = Math.floor((from * 65536 + (to >> 1)) / to);
    const reach = Math.max(from / to, 1);
    return Array.from({ length: count }, (_, i) => {
      const middle = ((2 * (i + offset) + 1) * step - 65536) / 131072;
      /** @type {Map<number, number>} */
      const some = new Map();
      let sum = 0;
      for (let j = Math.ceil(middle - reach); j <= middle + reach; j++) {
        const weight = 1 - Math.abs(j - middle) / reach;
        const k = Math.max(0, Math.min(from - 1, j));
        some.set(k, (some.get(k) || 0) + weight);
        sum += weight;
      }
      let error = 0;
      return [...some].map(([j, weight]) => {
        const exact = (weight / sum) * one + error;
        error = exact - Math.round(exact);
        return [j, Math.round(exact)];
      });
    });
  }

  /** A part of a plane scaled to `to`, in units of 2^-19. @param {Plane} plane
   * @param {number[]} to @param {number[]} corner @param {number[]} size height and width, like the others */
  function scaled({ data, at, stride, step, width: w, height: h }, to, corner, size) {
    const across = triangle(w, to[1], corner[1], size[1], 1 << 14);
    const down = triangle(h, to[0], corner[0], size[0], 1 << 12);
    const wide = new Int32Array(h * size[1]);
    for (let y = 0, o = 0; y < h; y++)
      for (const some of across) {
        let sum = 0;
        for (const [x, weight] of some) sum += weight * data[at + y * stride + x * step];
        wide[o++] = Math.min(sum >> 7, 32767);
      }
    const out = new Int32Array(size[0] * size[1]);
    down.forEach((some, y) => {
      for (let x = 0; x < size[1]; x++) {
        let sum = 0;
        for (const [from, weight] of some) sum += weight * wide[from * size[1] + x];
        out[y * size[1] + x] = sum;
      }
    });
    return out;
  }

  /** What V adds to red, U to blue, U and V to green, times 65536. @type {Record<string, number[]>} */
  const matrices = {
    smpte170m: [104597, 132201, -25675, -53279],
    bt709: [117489, 138438, -13975, -34925],
    'bt2020-ncl': [110013, 140363, -12277, -42626],
  };

  /** What makes red, green and blue, each 0 to 255, of Y, U and V. @param {Picture} picture @param {boolean} paired
   * @returns {(y: number, u: number, v: number) => number[]} */
  function converter({ matrix, full }, paired) {
    const some = (matrices[matrix] || matrices.smpte170m).map((c) => (full ? (c * 224) / 255 : c));
    const [low, gain] = full ? [0, 65536] : [16, Math.floor((65536 * 255) / 219)];
    if (!paired) {
      const [rv, bu, gu, gv] = some.map((c) => c / 65536);
      return (y, u, v) => {
        const light = ((y - low) * gain) / 65536 + 0.5;
        return [light + rv * (v - 128), light + gu * (u - 128) + gv * (v - 128), light + bu * (u - 128)].map(Math.floor);
      };
    }
    const [rv, bu, gu, gv] = some.map((c) => Math.trunc((Math.trunc(c) * 65536 + 32768) / gain));
    const shift = (/** @type {number} */ x, /** @type {number} */ c) => ((x * c) >> 16) - (c >> 9);
    const light = (/** @type {number} */ i) => ((i + (full ? 384 : 326)) * gain - ((384 + low) << 16) + 32768) >> 16;
    return (y, u, v) => [
      light(y + shift(v, rv)),
      light(y + shift(u, gu) + shift(v, gv)),
      light(y + shift(u, bu)),
    ];
  }

  /** A picture as the models see it: scaled to cover the box, its middle cut out.
   * @param {Picture} picture @param {number} h @param {number} w its height and width as it is shown */
  function shaped(picture, h, w) {
    const [boxHeight, boxWidth] = study.box;
    const k = Math.max(boxHeight / h, boxWidth / w);
    const big = [Math.max(boxHeight, even(h * k)), Math.max(boxWidth, even(w * k))];
    const top = Math.floor((big[0] - boxHeight) / 2) + Math.floor((boxHeight - height + 1) / 2);
    const left = Math.floor((big[1] - boxWidth) / 2) + Math.floor((boxWidth - width + 1) / 2);
    if (!picture.turn) return cutOut(picture, big, [top, left], [height, width]);
    // scaled as it lies in the file, then turned
    const [below, right] = [big[0] - top - height, big[1] - left - width];
    const lying = picture.turn % 2;
    const corner = [[], [right, top], [below, right], [left, below]][picture.turn];
    const size = lying ? [width, height] : [height, width];
    const rgb = cutOut(picture, lying ? [big[1], big[0]] : big, corner, size);
    const out = new Uint8Array(frameBytes);
    for (let y = 0, o = 0; y < height; y++)
      for (let x = 0; x < width; x++, o += 3) {
        const [v, u] = [[], [width - 1 - x, y], [height - 1 - y, width - 1 - x], [x, height - 1 - y]][picture.turn];
        out.set(rgb.subarray(3 * (v * size[1] + u), 3 * (v * size[1] + u) + 3), o);
      }
    return out;
  }

  /** A part of a picture that is scaled to `big`: RGB. @param {Picture} picture @param {number[]} big @param {number[]} corner @param {number[]} size */
  function cutOut(picture, big, [top, left], [height, width]) {
    // neighbours share U and V, unless the last one had no partner, or each has its own in the file
    const apart = big[1] % 2 || picture.planes[1].width === picture.planes[0].width ? 1 : 2;
    const [first, last] = [Math.floor(left / apart), Math.floor((left + width - 1) / apart)];
    const [ys, us, vs] = picture.planes.map((plane, i) =>
      i
        ? scaled(plane, [big[0], Math.ceil(big[1] / apart)], [top, first], [height, last - first + 1])
        : scaled(plane, big, [top, left], [height, width]),
    );
    const colour = converter(picture, apart === 2);
    const half = picture.planes[0].height < big[0] ? 0 : 1 << 18; // what is enlarged is not rounded
    const whole = (/** @type {number} */ x) => (apart === 2 ? (x + half) >> 19 : x / 524288);
    const rgb = new Uint8ClampedArray(3 * height * width);
    for (let y = 0, o = 0; y < height; y++)
      for (let x = 0; x < width; x++, o += 3) {
        const i = y * (last - first + 1) + Math.floor((x + left) / apart) - first;
        rgb.set(colour(whole(ys[y * width + x]), whole(us[i]), whole(vs[i])), o);
      }
    return new Uint8Array(rgb.buffer);
  }

  /** To the nearest whole number, from a half to the even one, as Python does it. @param {number} x */
  const even = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

  /** Y, U and V of the frame on screen as its file has them; null where the browser does not hand them out.
   * @param {HTMLVideoElement} video @returns {Promise<Picture | null>} */
  async function decoded(video) {
    if (typeof VideoFrame !== 'function') return null;
    const f = new VideoFrame(video);
    try {
      const share = { I420: [2, 2], I422: [2, 1], I444: [1, 1], NV12: [2, 2] }[String(f.format)];
      const { matrix, fullRange, transfer } = f.colorSpace;
      const { rotation = 0, flip } = /** @type {any} */ (f);
      const odd = f.displayWidth !== video.videoWidth || flip || matrix === 'rgb';
      if (!share || odd || ['pq', 'hlg'].includes(String(transfer))) return null;
      const { width: w, height: h } = /** @type {DOMRectReadOnly} */ (f.visibleRect);
      const data = new Uint8Array(f.allocationSize());
      const planes = await f.copyTo(data);
      const [y, u, v = { offset: u.offset + 1, stride: u.stride }] = planes;
      const small = { step: planes.length === 2 ? 2 : 1, width: Math.ceil(w / share[0]), height: Math.ceil(h / share[1]) };
      return {
        planes: [
          { data, at: y.offset, stride: y.stride, step: 1, width: w, height: h },
          { data, at: u.offset, stride: u.stride, ...small },
          { data, at: v.offset, stride: v.stride, ...small },
        ],
        matrix: String(matrix),
        full: Boolean(fullRange),
        turn: rotation / 90,
      };
    } catch {
      return null;
    } finally {
      f.close();
    }
  }

  /** Y, U and V of the frame as the browser draws it. @param {HTMLVideoElement} video @param {HTMLCanvasElement} canvas @returns {Picture} */
  function drawn(video, canvas) {
    const [w, h] = [video.videoWidth, video.videoHeight];
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d', { willReadFrequently: true }));
    context.drawImage(video, 0, 0, w, h);
    const rgba = context.getImageData(0, 0, w, h).data;
    const planes = [2, 1, 1].map((of) => {
      const [wide, high] = [Math.ceil((w * of) / 2), Math.ceil((h * of) / 2)];
      return { data: new Uint8ClampedArray(wide * high), at: 0, stride: wide, step: 1, width: wide, height: high };
    });
    for (let y = 0, i = 0; y < h; y++)
      for (let x = 0; x < w; x++, i += 4)
        planes[0].data[y * w + x] = 16 + 0.256788 * rgba[i] + 0.504129 * rgba[i + 1] + 0.097906 * rgba[i + 2];
    const { width: wide, height: high } = planes[1];
    for (let y = 0, o = 0; y < high; y++)
      for (let x = 0; x < wide; x++, o++) {
        const [below, right] = [Math.min(2 * y + 1, h - 1), Math.min(2 * x + 1, w - 1)];
        const four = [2 * y * w + 2 * x, 2 * y * w + right, below * w + 2 * x, below * w + right];
        const [r, g, b] = [0, 1, 2].map((c) => four.reduce((s, i) => s + rgba[4 * i + c], 0) / 4);
        planes[1].data[o] = 128 - 0.148223 * r - 0.290993 * g + 0.439216 * b;
        planes[2].data[o] = 128 + 0.439216 * r - 0.367788 * g - 0.071427 * b;
      }
    return { planes, matrix: 'smpte170m', full: false, turn: 0 };
  }

  /** The frame on screen as the models see it. @param {HTMLVideoElement} video @param {HTMLCanvasElement} canvas */
  async function look(video, canvas) {
    return shaped((await decoded(video)) || drawn(video, canvas), video.videoHeight, video.videoWidth);
  }

  /** @param {EventTarget} what @param {string} event @param {number} seconds @param {string} late @returns {Promise<void>} */
  function once(what, event, seconds, late) {
    return new Promise((done, fail) => {
      const end = setTimeout(() => fail(new Error(late)), 1000 * seconds);
      const off = () => {
        clearTimeout(end);
        what.removeEventListener(event, ok);
        what.removeEventListener('error', bad);
      };
      const ok = () => {
        off();
        done();
      };
      const bad = () => {
        off();
        fail(
          new Error(
            'this browser cannot decode it: it is no video, or the browser lacks its codec; MP4 with H.264 works in most',
          ),
        );
      };
      what.addEventListener(event, ok);
      what.addEventListener('error', bad);
    });
  }

  /** @param {HTMLVideoElement} video @param {number} t */
  async function seek(video, t) {
    const there = once(video, 'seeked', 20, 'the browser takes too long to decode it');
    video.currentTime = t;
    await there;
  }

  /** @param {File} file */
  async function watchFile(file) {
    const turn = ++watching;
    const video = element('video', { muted: true, playsInline: true, preload: 'auto' });
    const url = URL.createObjectURL(file);
    byId('try-over-time').replaceChildren();
    try {
      say(watched, 'Reading the video …');
      const ready = once(video, 'loadeddata', 20, 'the browser does not get it open');
      video.src = url;
      await ready;
      if (!video.videoWidth)
        throw new Error('this browser hears its sound and sees no picture: there is none, or the browser lacks its codec; MP4 with H.264 works in most');
      // a recording may not say how long it is: its end is where seeking stops
      if (!Number.isFinite(video.duration)) await seek(video, 1e7);
      const length = Number.isFinite(video.duration) ? video.duration : video.currentTime;
      const part = Math.min(length, longest);
      const { starts, at } = windows(part);
      const wanted = [...new Set(at.flat().map((t) => t.toFixed(6)))].sort((a, b) => Number(a) - Number(b));
      /** @type {Map<string, Uint8Array>} */
      const seen = new Map();
      const canvas = element('canvas');
      await load();
      for (const t of wanted) {
        // a frame begins a little early, as in the library: its time and the browser's are rounded to microseconds
        await seek(video, Math.min(Number(t) + 2e-6, Math.max(0, length - 0.001)));
        if (turn !== watching) return;
        seen.set(t, await look(video, canvas));
        if (seen.size % 10 === 0) say(watched, `Reading the video: ${Math.round((100 * seen.size) / wanted.length)} %`);
      }
      const some = at.map((ts) => ts.map((t) => /** @type {Uint8Array} */ (seen.get(t.toFixed(6)))));
      const more =
        length > longest ? `Its first ${longest} seconds were watched; kinetics-dance predict watches all of it. ` : '';
      await report(some, starts, part, more, turn);
    } catch (e) {
      if (turn === watching) say(watched, `${file.name}: ${reason(e)}.`, true);
    } finally {
      video.removeAttribute('src');
      URL.revokeObjectURL(url);
    }
  }

  async function watchCamera() {
    const turn = ++watching;
    /** @type {MediaStream | null} */
    let stream = null;
    byId('try-over-time').replaceChildren();
    try {
      if (!navigator.mediaDevices) throw new Error('this browser gives no camera to a page like this');
      say(watched, 'Waiting for the camera …');
      stream = await navigator.mediaDevices.getUserMedia({ video: true }).catch((e) => {
        const why =
          { NotAllowedError: 'it was not allowed', NotFoundError: 'there is none' }[/** @type {Error} */ (e).name] ||
          reason(e);
        throw new Error(why);
      });
      await load();
      const video = element('video', { muted: true, playsInline: true, srcObject: stream });
      await video.play();
      say(watched, `Recording ${study.seconds} seconds …`);
      const canvas = element('canvas');
      const began = performance.now();
      const some = [];
      for (let k = 0; k < study.frames; k++) {
        const due = (1000 * study.seconds * (k + 0.5)) / study.frames;
        await new Promise((done) => setTimeout(done, Math.max(0, due - (performance.now() - began))));
        some.push(await look(video, canvas));
      }
      if (turn === watching) await report([some], [0], study.seconds, '', turn);
    } catch (e) {
      if (turn === watching)
        say(watched, `The camera cannot be used: ${reason(e)}. A file can be dropped instead.`, true);
    } finally {
      if (stream) stream.getTracks().forEach((t) => t.stop());
    }
  }

  /** The largest mean difference between neighbouring frames. @param {Uint8Array[]} some */
  function movement(some) {
    let most = 0;
    for (let k = 1; k < some.length; k++) {
      let sum = 0;
      for (let i = 0; i < frameBytes; i++) sum += Math.abs(some[k][i] - some[k - 1][i]);
      most = Math.max(most, sum / frameBytes);
    }
    return most;
  }

  /** Probabilities over time. @param {Uint8Array[][]} some @param {number[]} starts @param {number} length @param {string} more @param {number} turn */
  async function report(some, starts, length, more, turn) {
    const figures = [];
    /** @type {Record<string, number[][]>} */
    const all = {};
    for (const m of study.models) {
      const rows = [];
      for (const frames of some) {
        const data = new Uint8Array(study.frames * frameBytes);
        frames.forEach((f, k) => data.set(f, k * frameBytes));
        rows.push(Array.from((await ask(m.name, data))[0]));
        if (turn !== watching) return;
      }
      all[m.name] = rows;
      figures.push(overTime(m, rows, starts, length));
    }
    byId('try-over-time').replaceChildren(...figures);
    /** @type {any} */ (globalThis).tryIt.watched = { starts, probabilities: all, frames: some };
    const still = some.every((f) => movement(f) < 0.5)
      ? 'Nothing moves in this video, so order cannot say anything about it. '
      : '';
    const n = `${some.length} window${some.length > 1 ? 's' : ''}`;
    say(watched, `${still}${more}${n} over ${length.toFixed(1)} seconds.`);
  }

  /** @param {Model} m @param {number[][]} rows @param {number[]} starts @param {number} length */
  function overTime(m, rows, starts, length) {
    const mean = study.classes.map((_, c) => rows.reduce((s, r) => s + r[c], 0) / rows.length);
    const top = mean
      .map((p, c) => ({ p, c }))
      .sort((a, b) => b.p - a.p)
      .slice(0, 3);
    /** @param {string} tag @param {Record<string, any>} set */
    const part = (tag, set) => {
      const e = document.createElementNS('http://www.w3.org/2000/svg', tag);
      Object.entries(set).forEach(([k, v]) => e.setAttribute(k, String(v)));
      return e;
    };
    const middle = (/** @type {number} */ i) => (500 * (starts[i] + Math.min(study.seconds, length) / 2)) / length;
    const svg = part('svg', {
      viewBox: '0 0 500 104',
      role: 'img',
      'aria-label': `Probabilities over time, ${m.title}`,
    });
    for (const y of [2, 52, 102])
      svg.append(part('line', { x1: 0, x2: 500, y1: y, y2: y, stroke: 'currentColor', 'stroke-opacity': 0.25 }));
    top.forEach(({ c }, k) => {
      const dash = ['none', '7 4', '2 3'][k];
      // the first window speaks for the beginning, the last one for the end
      const points = [[0, rows[0][c]], ...rows.map((r, i) => [middle(i), r[c]]), [500, rows[rows.length - 1][c]]];
      svg.append(
        part('polyline', {
          points: points.map(([x, p]) => `${x.toFixed(1)},${(102 - 100 * p).toFixed(1)}`).join(' '),
          fill: 'none',
          stroke: 'currentColor',
          'stroke-width': 2,
          'stroke-dasharray': dash,
        }),
      );
    });
    const words = top
      .map(({ p, c }, k) => `${['solid', 'dashed', 'dotted'][k]}: ${study.classes[c]}, ${percent(p)} on average`)
      .join('; ');
    return element(
      'figure',
      { className: 'try-over' },
      element('figcaption', {}, element('strong', {}, m.title), `, 0 to ${length.toFixed(1)} s. ${words}.`),
      svg,
    );
  }

  const drop = byId('try-drop');
  byId('try-file').addEventListener(
    'change',
    (/** @type {any} */ e) => e.target.files.length && watchFile(e.target.files[0]),
  );
  byId('try-camera').addEventListener('click', watchCamera);
  ['dragenter', 'dragover', 'dragleave', 'drop'].forEach((kind) =>
    drop.addEventListener(kind, (/** @type {DragEvent} */ e) => {
      e.preventDefault();
      drop.classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
      const file = kind === 'drop' && e.dataTransfer && e.dataTransfer.files[0];
      if (file) watchFile(file);
    }),
  );

  // What tests and parts use.
  /** @type {any} */ (globalThis).tryIt = {
    put: (/** @type {string} */ name, /** @type {string} */ text) => parts.set(name, text),
    ask,
    load,
    study,
  };
})();
