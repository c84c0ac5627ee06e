// Refreshes the elements marked `data-live`: fetches the page again and updates the changed parts. If the page cannot be
// fetched, a notice says since when. Also: action forms are submitted once, checkboxes select all, buttons copy a text.
(() => {
  "use strict";

  const EVERY_MS = 2000;
  const TIMEOUT_MS = 10000;
  let refreshedAt = new Date();

  function showStale(isStale) {
    const note = document.getElementById("o-stale");
    if (note) {
      note.hidden = !isStale;
      note.textContent = isStale ? `Not refreshed since ${refreshedAt.toISOString().slice(11, 19)} UTC: no response from the server.` : "";
    }
  }

  function isInUse(part) {
    return part.contains(document.activeElement) && document.activeElement.matches("input, select, textarea")
      || part.querySelector("input:checked") !== null;
  }

  // Updates a node in place, which keeps scroll positions, open details and the hover state.
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
      const response = await fetch(location.href, { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
      if (response.redirected) return location.reload(); // signed out
      if (!response.ok) throw new Error(String(response.status));
      replaceIn(parts, new DOMParser().parseFromString(await response.text(), "text/html"));
      refreshedAt = new Date();
      showStale(false);
    } catch {
      showStale(true);
    }
  }

  async function refreshRepeatedly() {
    await refresh();
    setTimeout(refreshRepeatedly, EVERY_MS);
  }

  // Select all: `data-picks` names the checkboxes of the same form.
  document.addEventListener("change", ({ target }) => {
    const name = target.dataset?.picks;
    if (name) for (const box of target.form.querySelectorAll(`input[name="${CSS.escape(name)}"]`)) box.checked = target.checked;
  });

  // Submit a form once, however often its button is clicked. Going back to the page enables it again.
  document.addEventListener("submit", (event) => {
    if (!event.target.matches(".o-form")) return;
    if (event.target.ariaBusy === "true") event.preventDefault();
    event.target.ariaBusy = "true";
  });
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll(".o-form")) form.ariaBusy = null;
  });

  // Copy the text of the element with the id `data-copies`. Without clipboard access, select it for the keyboard.
  document.addEventListener("click", async ({ target }) => {
    const source = document.getElementById(target.dataset?.copies);
    if (!source) return;
    try {
      await navigator.clipboard.writeText(source.innerText);
      target.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
    }
  });

  document.addEventListener("DOMContentLoaded", () => setTimeout(refreshRepeatedly, EVERY_MS));
})();
