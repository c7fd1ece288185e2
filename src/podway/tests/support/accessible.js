(() => {
  const wrong = [];
  const said = e => e.outerHTML.slice(0, 120);
  if (document.documentElement.lang !== 'en') wrong.push('html has no lang');
  if (!document.title.trim()) wrong.push('no title');
  if (document.querySelectorAll('h1').length !== 1) wrong.push('not one h1');
  if (document.querySelectorAll('main').length !== 1) wrong.push('not one main');
  let level = 0;
  for (const h of document.querySelectorAll('h1,h2,h3,h4,h5,h6')) {
    const l = +h.tagName[1];
    if (l > level + 1) wrong.push('a heading is skipped before ' + said(h));
    level = l;
  }
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  for (const id of new Set(ids)) if (ids.filter(i => i === id).length > 1) wrong.push('id twice: ' + id);
  for (const e of document.querySelectorAll('[aria-labelledby]'))
    if (!document.getElementById(e.getAttribute('aria-labelledby'))) wrong.push('labelled by nothing: ' + said(e));
  for (const e of document.querySelectorAll('input,select,textarea'))
    if (!(e.labels && e.labels.length) && !e.getAttribute('aria-label')) wrong.push('no label: ' + said(e));
  for (const e of document.querySelectorAll('a,button,summary'))
    if (!e.textContent.trim() && !e.getAttribute('aria-label')) wrong.push('no name: ' + said(e));
  for (const e of document.querySelectorAll('th')) {
    if (!e.scope) wrong.push('th without scope: ' + said(e));
    if (!e.textContent.trim()) wrong.push('empty th: ' + said(e));
  }
  for (const e of document.querySelectorAll('svg'))
    if (e.getAttribute('aria-hidden') !== 'true' && !e.getAttribute('aria-label')) wrong.push('svg without name: ' + said(e));
  const parse = c => (c.match(/[\d.]+/g) || []).map(Number);
  const lum = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || (c.length === 4 && c[3] > 0)) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  let checked = 0;
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || seen.has(e) || e.closest('script,style,noscript') || !e.getClientRects().length) continue;
    seen.add(e); checked++;
    const s = getComputedStyle(e);
    const front = parse(e.closest('svg') ? s.fill : s.color).slice(0, 3), back = ground(e);
    const [hi, lo] = [lum(front), lum(back)].sort((a, b) => b - a);
    const ratio = (hi + .05) / (lo + .05);
    const big = parseFloat(s.fontSize) >= 24 || (parseFloat(s.fontSize) >= 18.66 && +s.fontWeight >= 700);
    if (ratio < (big ? 3 : 4.5)) wrong.push('contrast ' + ratio.toFixed(2) + ': ' + said(e));
  }
  if (checked < 5) wrong.push('only ' + checked + ' texts were looked at');
  if (document.documentElement.scrollWidth > innerWidth) wrong.push('the page is wider than its window');
  return wrong;
})()
