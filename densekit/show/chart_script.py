"""The script of a page with charts: a pointer reads off values, a dragged range is drawn larger.

It needs nothing but the page. Without it the charts stand as they were drawn.
"""

SCRIPT = """
'use strict';
// Points within a range, and where lines cross its ends.
function within(points, low, high) {
  const found = [];
  points.forEach((p, i) => {
    if (p[0] >= low && p[0] <= high) found.push(p);
    const q = points[i + 1];
    for (const end of q ? [low, high] : [])
      if ((p[0] - end) * (q[0] - end) < 0) found.push([end, p[1] + (q[1] - p[1]) * (end - p[0]) / (q[0] - p[0])]);
  });
  return found;
}
function nearest(points, x) {
  return points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
}
// Few letters: marks upwards have little room.
function words(value, digits) {
  const small = value !== 0 && Math.abs(value) < 0.01;
  return small ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
}
function start(chart) {
  const box = chart.parentElement, read = box.querySelector('.read'), back = box.querySelector('button');
  const lines = [...chart.querySelectorAll('polyline')], ideal = chart.querySelector('.ideal');
  const points = lines.map(l => l.dataset.values.split(' ').map(p => p.split(',').map(Number)));
  const [left, right, top, bottom] = chart.dataset.place.split(' ').map(Number);
  const whole = chart.dataset.axes.split(' ').map(Number), least = (whole[1] - whole[0]) / 1000;
  const drawn = lines.map(l => l.getAttribute('points')), band = chart.querySelector('.band');
  const marks = [...chart.querySelectorAll('.x, .y')], told = marks.map(m => m.textContent);
  let axes = whole, from = null, at = null;
  const place = x => left + (x - axes[0]) / (axes[1] - axes[0]) * (right - left);
  function value(event) {
    const area = chart.getBoundingClientRect();
    const x = (event.clientX - area.left) / area.width * chart.viewBox.baseVal.width;
    return axes[0] + (Math.min(Math.max(x, left), right) - left) / (right - left) * (axes[1] - axes[0]);
  }
  function show(low, high) {
    band.setAttribute('x', place(low));
    band.setAttribute('width', Math.max(1, place(high) - place(low)));
  }
  function tell(x) {
    at = x;
    const near = points.map(p => nearest(p, x));
    read.textContent = lines.map((l, i) => `${l.dataset.name} ${near[i][1]} at ${near[i][0]}`).join(', ');
    show(x, x);
  }
  function clear() { at = from = null; read.textContent = ''; band.setAttribute('width', 0); }
  function zoom(low, high) {
    const [a, b] = [Math.max(low, whole[0]), Math.min(high, whole[1])];
    const seen = points.map(p => within(p, a, b)), up = seen.flat().map(p => p[1]);
    if (b - a < least || !up.length) return;
    const [y0, y1] = [Math.min(...up), Math.max(...up)], room = (y1 - y0) * 0.05 || 0.5;
    axes = [a, b, y0 - room, y1 + room];
    const high_at = y => bottom - (y - axes[2]) / (axes[3] - axes[2]) * (bottom - top);
    lines.forEach((l, i) => {
      const found = seen[i].length === 1 ? [seen[i][0], seen[i][0]] : seen[i];
      l.setAttribute('points', found.map(p => `${place(p[0]).toFixed(1)},${high_at(p[1]).toFixed(1)}`).join(' '));
      l.classList.toggle('dot', seen[i].length === 1);
    });
    for (const m of marks) {
      const k = m.classList.contains('x') ? 0 : 2, part = (m.dataset.at - whole[k]) / (whole[k + 1] - whole[k]);
      m.textContent = words(axes[k] + part * (axes[k + 1] - axes[k]), k === 0 ? 4 : 3);
    }
    if (ideal) ideal.style.display = 'none';
    back.hidden = false;
  }
  function reset() {
    axes = whole;
    lines.forEach((l, i) => { l.setAttribute('points', drawn[i]); l.classList.toggle('dot', points[i].length === 1); });
    marks.forEach((m, i) => { m.textContent = told[i]; });
    if (ideal) ideal.style.display = '';
    back.hidden = true;
    clear();
  }
  chart.addEventListener('pointerdown', event => { from = value(event); tell(from); });
  chart.addEventListener('pointermove', event => {
    const x = value(event);
    tell(x);
    if (from !== null) show(Math.min(from, x), Math.max(from, x));
  });
  function finish(event) {
    const [low, high] = [from, value(event)].sort((a, b) => a - b), chosen = from !== null;
    from = null;
    if (chosen && place(high) - place(low) > 8) { zoom(low, high); clear(); }
  }
  chart.addEventListener('pointerup', finish);
  chart.addEventListener('pointercancel', clear);
  chart.addEventListener('pointerleave', event => {
    if (event.pointerType !== 'mouse') return;
    finish(event);
    clear();
  });
  chart.addEventListener('dblclick', reset);
  back.addEventListener('click', () => { reset(); chart.focus(); });
  chart.addEventListener('keydown', event => {
    const [low, high] = axes, span = high - low, x = at === null ? (low + high) / 2 : at;
    if (event.key === 'ArrowLeft') tell(Math.max(low, x - span / 50));
    else if (event.key === 'ArrowRight') tell(Math.min(high, x + span / 50));
    else if (event.key === '+') { zoom(x - span / 4, x + span / 4); tell(x); }
    else if (event.key === 'Escape' || event.key === '-') reset();
    else return;
    event.preventDefault();
  });
}
document.querySelectorAll('svg.chart').forEach(start);
"""
