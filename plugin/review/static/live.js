// Keeps a station's state and newest parts up to date; what has not changed is left in its place.
"use strict";

(() => {
  const EVERY_MS = 1000;
  const live = document.getElementById("live");

  function renew(before, after) {
    const old = new Map([...before.querySelectorAll("[data-key]")].map((each) => [each.dataset.key, each]));
    for (const each of after.querySelectorAll("[data-key]")) {
      const same = old.get(each.dataset.key);
      if (same && same.outerHTML === each.outerHTML) {
        each.replaceWith(same); // its pictures need not be decoded again
      }
    }
    before.replaceChildren(...after.childNodes);
  }

  async function look() {
    try {
      const answer = document.hidden ? null : await fetch(live.dataset.live);
      if (answer?.ok) {
        const text = await answer.text();
        const focused = live.contains(document.activeElement);
        if (!focused) {
          renew(live, new DOMParser().parseFromString(text, "text/html").body);
        }
        live.dataset.rounds = String(Number(live.dataset.rounds || 0) + 1);
      }
    } catch {
      // The host is restarting; the next round finds it.
    }
    setTimeout(look, EVERY_MS);
  }
  setTimeout(look, EVERY_MS);
})();
