"use strict";
// Asks for what has changed and changes only that, so that nothing flickers and a selection stays.
(() => {
  const silence = document.getElementById("silence");
  const drawn = document.createElement("div");
  let heard = Date.now();

  const selects = (element) => {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && element.contains(selection.anchorNode);
  };

  const show = (now) => {
    document.title = now.title;
    document.documentElement.dataset.mode = now.mode;
    const icon = document.querySelector("link[rel=icon]");
    if (icon.getAttribute("href") !== now.icon) icon.href = now.icon;
    for (const [name, html] of Object.entries(now.sections)) {
      const element = document.getElementById(name);
      drawn.innerHTML = html; // as the browser writes it, so that the two can be compared
      if (drawn.innerHTML !== element.innerHTML && !selects(element)) element.innerHTML = html;
    }
  };

  const ask = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      show(await answer.json());
      heard = Date.now();
      silence.hidden = true;
    } catch {
      if (Date.now() - heard < 6000) return;
      const since = new Date(heard).toISOString().slice(11, 19);
      const text = `The application has not answered since ${since} UTC. What stands below is from then.`;
      if (silence.textContent !== text) silence.textContent = text;
      silence.hidden = false;
    }
  };

  const go = async () => {
    await ask();
    setTimeout(go, 2000);
  };
  document.addEventListener("visibilitychange", ask);
  setTimeout(go, 2000);
})();
