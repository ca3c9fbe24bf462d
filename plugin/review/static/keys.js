// Keys of the review pages, one verdict per press; how long a part was looked at; who has it open.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const part = byId("part");
  const texts = JSON.parse(document.body.dataset.texts);
  let leaving = false;

  // A text of the catalogue, its places filled in.
  function say(key, values = {}) {
    return texts[key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
  }

  let toastEnds = 0;
  function tell(text) {
    const toast = byId("toast");
    toast.textContent = text;
    toast.hidden = false;
    clearTimeout(toastEnds);
    toastEnds = setTimeout(() => { toast.hidden = true; }, 4000);
  }

  window.flawline = { say, tell };

  // Time in which the part could be seen, from when its picture stood there: what is hidden is not looked at.
  let seenSince = document.hidden ? null : performance.now();
  let seenBefore = 0;
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && seenSince !== null) {
      seenBefore += performance.now() - seenSince;
      seenSince = null;
    } else if (!document.hidden && seenSince === null) {
      seenSince = performance.now();
    }
  });
  document.addEventListener("pictures", () => {
    seenBefore = 0;
    seenSince = document.hidden ? null : performance.now();
  });
  const dwell = () => Math.round(seenBefore + (seenSince === null ? 0 : performance.now() - seenSince));

  byId("verdict")?.addEventListener("submit", (event) => {
    event.target.elements.dwell_ms.value = String(dwell());
  });

  function press(id) {
    const button = byId(id);
    if (button?.form && !leaving) {
      leaving = true;
      button.form.requestSubmit(button);
    }
    return Boolean(button);
  }

  function undo() {
    const last = byId("undo-last");
    if (last && !leaving) {
      leaving = true;
      last.requestSubmit();
    } else if (!last) {
      press("undo");
    }
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

  function openFirst() {
    const first = document.querySelector("#queue .card:not(.held)");
    if (first && !leaving && document.activeElement === document.body) {
      leaving = true;
      first.click();
    }
  }

  const step = (forward) => {
    if (byId("queue")) {
      moveInQueue(forward ? 1 : -1);
    } else {
      follow(forward ? "next" : "previous");
    }
  };

  function classOf(digit) {
    const button = document.querySelector(`[data-digit="${digit}"]`);
    if (!button) {
      if (byId("verdict")) {
        tell(say("no_class", { n: digit }));
      }
    } else if (!leaving) {
      leaving = true;
      button.form.requestSubmit(button);
    }
  }

  const help = byId("help");
  byId("show-help")?.addEventListener("click", () => help.showModal());
  byId("close-help")?.addEventListener("click", () => help.close());

  const actions = {
    d: () => press("defect"),
    g: () => press("good"),
    s: () => press("unsure"),
    u: undo,
    c: () => byId("comment")?.focus(),
    q: () => follow("up"),
    "?": () => help?.showModal(),
    h: () => help?.showModal(),
    b: () => byId("boxes")?.click(),
    r: () => byId("base")?.click(),
    o: () => byId("golden")?.click(),
    x: () => byId("blink")?.click(),
    v: () => byId("side")?.click(),
    z: () => byId("pixels")?.click(),
    f: () => byId("fit")?.click(),
    j: () => step(true),
    k: () => step(false),
    ArrowRight: () => step(true),
    ArrowDown: () => step(true),
    ArrowLeft: () => step(false),
    ArrowUp: () => step(false),
    Enter: openFirst,
  };
  const view = (name, detail) => document.dispatchEvent(new CustomEvent("view", { detail: { name, ...detail } }));
  const PAN = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const looks = {
    m: () => view("map"),
    "[": () => view("opacity", { by: -10 }),
    "]": () => view("opacity", { by: 10 }),
    "+": () => view("zoom", { by: 1.25 }),
    "=": () => view("zoom", { by: 1.25 }),
    "-": () => view("zoom", { by: 0.8 }),
  };

  // The letter on the key where an input method keeps the letter to itself, and where capitals are locked.
  function letter(event) {
    if (event.isComposing || event.key === "Process") {
      return (/^(?:Key|Digit)(.)$/.exec(event.code)?.[1] || "").toLowerCase();
    }
    return event.key.length === 1 ? event.key.toLowerCase() : event.key;
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || help?.open) {
      return;
    }
    const field = event.target.matches("input, select, textarea") ? event.target : null;
    if (field?.id === "comment" && (event.key === "Enter" || event.key === "Escape")) {
      event.preventDefault();
      field.blur();
      if (event.key === "Enter" && field.value) {
        tell(say("comment_kept"));
      }
      return;
    }
    // On the slider the arrows belong to the slider, letters still decide; in a text field all keys are text.
    if (field && (field.type !== "range" || event.key.startsWith("Arrow"))) {
      return;
    }
    const key = letter(event);
    if (event.shiftKey && PAN[key] && part) {
      event.preventDefault();
      view("pan", { by: PAN[key] });
      return;
    }
    if (looks[key]) {
      event.preventDefault();
      looks[key]();
      return;
    }
    if (event.repeat) {
      return;
    }
    if (key === " " && part && !event.target.matches("button, a, summary")) {
      event.preventDefault();
      view("compare", { on: true });
    } else if (/^[1-9]$/.test(key)) {
      classOf(key);
    } else if (actions[key] && !(key === "Enter" && event.target !== document.body)) {
      event.preventDefault();
      actions[key]();
    }
  });
  document.addEventListener("keyup", (event) => {
    if (event.key === " ") {
      view("compare", { on: false });
    }
  });

  // Whoever has a part open holds it as long as they do something; a page that is left lets go.
  if (part?.dataset.hold) {
    const token = document.querySelector("#verdict [name=csrf]")?.value || "";
    const body = (kind) => new URLSearchParams({ hold: part.dataset.hold, csrf: token, kind });
    const at = `/parts/${part.dataset.part}/hold`;
    const every = Number(part.dataset.every);
    let touched = false;
    let lost = false;
    for (const kind of ["keydown", "pointerdown", "pointermove", "wheel"]) {
      document.addEventListener(kind, () => {
        touched = true;
        if (lost && kind !== "pointermove" && !leaving) {
          leaving = true;
          location.reload();
        }
      }, { capture: true, passive: true });
    }
    setInterval(async () => {
      const wanted = touched;
      touched = false;
      if (leaving || lost) {
        return;
      }
      try {
        const answer = await fetch(at, { method: "POST", body: body(wanted ? "renew" : "ask") });
        if (answer.status === 409 && !leaving) {
          lost = true;
          tell((await answer.json()).taken ? say("taken") : say("hold_lost"));
        }
      } catch {
        // The host is restarting; the store still refuses what others decided.
      }
    }, every);
    window.addEventListener("pagehide", () => navigator.sendBeacon(at, body("release")));
  }

  // A page that comes back from the browser's memory may take keys again; its hold it must ask for anew.
  window.addEventListener("pageshow", (event) => {
    leaving = false;
    if (event.persisted && part) {
      location.reload();
    }
  });

  window.addEventListener("load", () => {
    const urls = JSON.parse(part?.dataset.preload || "[]");
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
      byId("waiting").textContent = waiting < 1000 ? String(waiting) : "999+";
      const busy = document.activeElement instanceof HTMLInputElement || help?.open || document.querySelector("details[open]");
      if (document.body.dataset.page === "queue" && !part && !location.search.includes("show=") &&
          String(waiting) !== document.body.dataset.waiting && !busy && !leaving) {
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
