// Keeps what is marked `data-live` fresh: the page is fetched again, and what has changed of these parts takes its place.
// A page that could not be fetched says so, and since when. Acts are not sent twice.
(() => {
  "use strict";

  const EVERY_MS = 2000;
  const PATIENCE_MS = 10000;
  let freshAt = new Date();

  function tellStale(isStale) {
    const note = document.getElementById("o-stale");
    if (note) {
      note.hidden = !isStale;
      note.textContent = isStale ? `Not refreshed since ${freshAt.toISOString().slice(11, 19)} UTC: the exchange does not answer.` : "";
    }
  }

  function isInUse(part) {
    return part.contains(document.activeElement) && document.activeElement.matches("input, select, textarea")
      || part.querySelector("input:checked") !== null;
  }

  // Makes a node like another in its place, so that what was scrolled, opened or is pointed at stays so.
  function update(node, other) {
    if (node.nodeName !== other.nodeName) return node.replaceWith(document.importNode(other, true));
    if (node.nodeType !== Node.ELEMENT_NODE) {
      if (node.data !== other.data) node.data = other.data;
      return;
    }
    for (const { name } of [...node.attributes]) if (!other.hasAttribute(name) && name !== "open") node.removeAttribute(name);
    for (const { name, value } of other.attributes) if (node.getAttribute(name) !== value) node.setAttribute(name, value);
    updateInside(node, other);
  }

  function updateInside(node, other) {
    const nodes = [...node.childNodes];
    const others = [...other.childNodes];
    others.forEach((each, n) => (n < nodes.length ? update(nodes[n], each) : node.append(document.importNode(each, true))));
    nodes.slice(others.length).forEach((each) => each.remove());
  }

  function replaceIn(parts, fresh) {
    for (const part of parts) {
      const other = fresh.getElementById(part.id);
      if (other && other.innerHTML !== part.innerHTML && !isInUse(part)) {
        const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
        updateInside(part, other);
        if (focused && document.activeElement.getAttribute("href") !== focused) {
          document.activeElement.blur();
          part.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
        }
      }
    }
  }

  async function refresh() {
    const parts = document.querySelectorAll("[data-live]");
    if (!parts.length || document.hidden) return;
    try {
      const answer = await fetch(location.href, { signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" });
      if (answer.redirected) return location.reload(); // signed out meanwhile
      if (!answer.ok) throw new Error(String(answer.status));
      replaceIn(parts, new DOMParser().parseFromString(await answer.text(), "text/html"));
      freshAt = new Date();
      tellStale(false);
    } catch {
      tellStale(true);
    }
  }

  async function goOn() {
    await refresh();
    setTimeout(goOn, EVERY_MS);
  }

  // A box that picks all: every box of its form with the name that it tells.
  document.addEventListener("change", ({ target }) => {
    const name = target.dataset?.picks;
    if (name) for (const box of target.form.querySelectorAll(`input[name="${CSS.escape(name)}"]`)) box.checked = target.checked;
  });

  // An act is pressed once, however often its button is; whoever comes back to its page may press again.
  document.addEventListener("submit", (event) => {
    if (!event.target.matches(".o-form")) return;
    if (event.target.ariaBusy === "true") event.preventDefault();
    event.target.ariaBusy = "true";
  });
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll(".o-form")) form.ariaBusy = null;
  });

  document.addEventListener("DOMContentLoaded", () => setTimeout(goOn, EVERY_MS));
})();
