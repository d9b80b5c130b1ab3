// Small things that a page does by itself; without scripts it can still be read.
// Excerpts in search results are fetched, which browsers do not allow on pages opened as files.
if (window.DOCUMENTATION_OPTIONS && location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

document.addEventListener('DOMContentLoaded', () => {
  // What scrolls sideways by itself (code, wide tables) can be reached and scrolled by keyboard.
  const reach = () => document.querySelectorAll('pre, .table-wrapper, .cell_output, figure.float-table, div.math, .plot-scroll').forEach(e => {
    const scrolls = e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible';
    if (scrolls && !e.hasAttribute('tabindex')) { e.tabIndex = 0; e.dataset.reach = ''; }
    else if (!scrolls && 'reach' in e.dataset) { e.removeAttribute('tabindex'); delete e.dataset.reach; }
  });
  reach();
  addEventListener('resize', reach);
  document.querySelectorAll('details').forEach(d => d.addEventListener('toggle', reach));

  // A film of a gallery plays while it is pointed at; one button plays them all.
  const still = matchMedia('(prefers-reduced-motion: reduce)');
  const play = v => { const p = v.play(); if (p) p.catch(() => {}); };
  document.querySelectorAll('.gallery').forEach(g => {
    const films = [...g.querySelectorAll('video')];
    g.querySelectorAll('.pair, :scope > .clip').forEach(group => {
      const own = [...group.querySelectorAll('video')];
      group.addEventListener('pointerenter', e => { if (e.pointerType === 'mouse' && !still.matches) own.forEach(play); });
    });
    const b = document.createElement('button');
    b.type = 'button'; b.className = 'play-all';
    const running = () => films.some(v => !v.paused);
    const label = () => { b.textContent = running() ? 'Pause' : films.length > 2 ? 'Play all' : 'Play both'; };
    b.addEventListener('click', () => { const on = running(); films.forEach(v => on ? v.pause() : (v.currentTime = 0, play(v))); });
    films.forEach(v => ['play', 'pause'].forEach(t => v.addEventListener(t, label)));
    label();
    g.before(b);
  });
});
