// Keys of the review pages, one verdict per press; pictures of the next part are fetched ahead.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  let leaving = false;

  function submit(id) {
    const form = byId(id);
    if (form && !leaving) {
      leaving = true;
      form.requestSubmit();
    }
    return Boolean(form);
  }

  function follow(id) {
    const link = byId(id);
    if (link && !leaving) {
      leaving = true;
      link.click();
    }
  }

  function moveInQueue(step) {
    const cards = [...document.querySelectorAll("#queue .card")];
    const at = cards.indexOf(document.activeElement);
    const to = cards[Math.min(cards.length - 1, Math.max(0, at + step))];
    if (to) {
      to.focus();
    }
  }

  const step = (forward) => {
    if (byId("queue")) {
      moveInQueue(forward ? 1 : -1);
    } else {
      follow(forward ? "next" : "previous");
    }
  };

  const actions = {
    d: () => submit("defect"),
    g: () => submit("good"),
    u: () => submit("undo-last") || submit("undo"),
    q: () => follow("up"),
    b: () => byId("boxes")?.click(),
    r: () => byId("base")?.click(),
    j: () => step(true),
    k: () => step(false),
    ArrowRight: () => step(true),
    ArrowDown: () => step(true),
    ArrowLeft: () => step(false),
    ArrowUp: () => step(false),
  };

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, select");
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) {
      return;
    }
    // On the slider the arrows belong to the slider, letters still decide; in a text field all keys are text.
    if (typing && (event.target.type !== "range" || event.key.startsWith("Arrow"))) {
      return;
    }
    const action = actions[event.key];
    if (action) {
      event.preventDefault();
      action();
    }
  });

  // A page that comes back from the browser's memory may take keys again.
  window.addEventListener("pageshow", () => { leaving = false; });

  window.addEventListener("load", () => {
    const urls = JSON.parse(byId("part")?.dataset.preload || "[]");
    for (const url of urls) {
      fetch(url, { priority: "low" }).catch(() => undefined);
    }
  });

  async function watchQueue() {
    try {
      const answer = await fetch("/api/waiting");
      if (answer.status === 401 && !leaving) {
        leaving = true;
        const here = location.pathname + location.search;
        location.replace(`/sign-in?why=ended&next=${encodeURIComponent(here)}`);
        return;
      }
      if (!answer.ok) {
        return;
      }
      const { waiting } = await answer.json();
      byId("waiting").textContent = String(waiting);
      const typing = document.activeElement instanceof HTMLInputElement;
      if (document.body.dataset.page === "queue" && !byId("part") &&
          String(waiting) !== document.body.dataset.waiting && !typing && !leaving) {
        leaving = true;
        location.replace("/queue");
      }
    } catch {
      // The host is restarting; the next round finds it.
    }
  }
  if ("watch" in document.body.dataset) {
    setInterval(watchQueue, 3000);
  }
  document.body.dataset.keys = "ready";
})();
