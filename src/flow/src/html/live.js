(() => {
  'use strict';
  const main = document.querySelector('main');
  const state = document.querySelector('.state');
  const at = document.body.dataset.live;
  if (!at || !main || !window.EventSource) return;
  let busy = false, again = false;
  const draw = async () => {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const answer = await fetch(location.href, { headers: { accept: 'text/html' } });
      if (!answer.ok) throw new Error(answer.status);
      const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html');
      const next = fresh.querySelector('main');
      if (next) {
        const open = new Set([...main.querySelectorAll('details[open]')].map(d => d.id));
        const typed = new Map([...main.querySelectorAll('input,select')].filter(i => i.id).map(i => [i.id, i]));
        const focus = document.activeElement && document.activeElement.id;
        main.replaceChildren(...next.childNodes);
        for (const d of main.querySelectorAll('details')) if (open.has(d.id)) d.open = true;
        for (const i of main.querySelectorAll('input,select')) {
          const old = typed.get(i.id);
          if (old && old.type === 'checkbox') i.checked = old.checked; else if (old) i.value = old.value;
        }
        if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
        document.title = fresh.title;
      }
    } catch (e) { state.textContent = 'not live: ' + e.message; }
    busy = false;
    if (again) { again = false; draw(); }
  };
  const source = new EventSource(at);
  source.onopen = () => { state.textContent = 'live'; };
  source.onerror = () => { state.textContent = 'not live: podway ui does not answer'; };
  source.onmessage = draw;
})();
