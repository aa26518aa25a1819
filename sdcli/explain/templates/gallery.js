"use strict";
// Texts out of pictures go into the page by textContent and properties only, never as HTML.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const total = data.pictures.url.length;

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }
  const number = (n) => n.toLocaleString("en");
  const MADE = "How it came out";
  const many = (n, one) => `${number(n)} ${one}${n === 1 ? "" : "s"}`;

  // Columns: `of(row)` gives a row's values, which are none, one or several.
  const columns = new Map(data.columns.map((c) => [c.name, { ...c, of: reader(c) }]));
  function reader(column) {
    const { values, at } = column;
    if (column.per === "folder") return () => values;
    if (column.per === "picture") return (row) => (values[row] === null ? [] : [values[row]]);
    return (row) => (typeof at[row] === "number" ? (at[row] < 0 ? [] : [values[at[row]]]) : at[row].map((i) => values[i]));
  }
  const text = (column, row) => column.of(row).join("\n");
  const said = (name, row) => (columns.has(name) ? text(columns.get(name), row) : "");

  // Search

  const haystacks = new Map();
  function haystack(scope) {
    if (!haystacks.has(scope)) {
      const among = scope ? [columns.get(scope)] : [...columns.values()];
      const made = new Array(total);
      for (let row = 0; row < total; row++) {
        made[row] = [scope ? "" : subtitle(row), ...among.map((c) => text(c, row))].join("\n").toLowerCase();
      }
      haystacks.set(scope, made);
    }
    return haystacks.get(scope);
  }
  function words(query) {
    // A space after a field's name is one that was typed out of habit.
    const joined = query.toLowerCase().replace(/"[^"]*"?|([^\s":]+): +/g, (all, name) => (isField(name) ? `${name}:` : all));
    return [...joined.matchAll(/([^\s":]+:)?"([^"]+)"?|(\S+)/g)].map((m) => m[3] ?? (m[1] ?? "") + m[2]);
  }
  // As the options are called.
  const ALSO = { steps: "num_inference_steps", cfg: "guidance_scale", sampler: "scheduler" };
  const named = new Map([...columns.values()].map((c) => [c.name.toLowerCase(), c]));
  for (const [name, field] of Object.entries(ALSO)) if (columns.has(field)) named.set(name, columns.get(field));
  for (const name of [...named.keys()]) named.set(name.replaceAll(" ", "_"), named.get(name));
  const wrong = new Set([...data.failures, ...data.unreadable].flatMap((one) => Object.keys(one)));
  const isField = (name) => named.has(name) || wrong.has(name);
  // What says of a row whether a word is in it; `field:value` looks into one field, where there is such a field.
  function wanted(word, scope) {
    const at = word.indexOf(":"), column = named.get(word.slice(0, at)), value = word.slice(at + 1).trim();
    if (at < 1 || !column) {
      const among = haystack(scope);
      return (row) => among[row].includes(word);
    }
    if (column.kind === "number" && value) return (row) => column.of(row).some((v) => String(v) === value || v === Number(value));
    const among = haystack(column.name);
    return (row) => among[row].includes(value);
  }

  // Filters: of each field the values that may be (null: it says none), and bounds.

  const filters = new Map();
  const isUsed = (f) => f.values.size > 0 || f.min !== null || f.max !== null;
  function passes(name, row) {
    const filter = filters.get(name);
    if (!isUsed(filter)) return true;
    const found = columns.get(name).of(row);
    if (filter.values.size) {
      if (!(found.length ? found.some((v) => filter.values.has(String(v))) : filter.values.has(null))) return false;
    }
    if (filter.min === null && filter.max === null) return true;
    return found.some((v) => (filter.min === null || Number(v) >= filter.min) && (filter.max === null || Number(v) <= filter.max));
  }

  // What is shown

  let shown = [];
  let matching = [];
  let started = false;
  function update() {
    const typed = words($("search").value), asked = typed.map((word) => wanted(word, $("scope").value));
    matching = [];
    for (let row = 0; row < total; row++) if (asked.every((is) => is(row))) matching.push(row);
    const names = [...filters.keys()];
    shown = matching.filter((row) => names.every((name) => passes(name, row)));
    order();
    chips();
    for (const name of names) count(name);
    $("count").textContent = (shown.length === total ? "" : `${number(shown.length)} of `) + many(total, "picture");
    $("none").hidden = shown.length > 0;
    const nobody = typed.map((word) => /^([\p{L}_.]+):/u.exec(word)?.[1]).find((name) => name && !named.has(name));
    $("none").textContent = `No picture is like that.${nobody ? ` There is no field ${nobody}.` : ""}`;
    focused = 0;
    layout();
    keep();
  }

  const collator = new Intl.Collator("en", { numeric: true });
  function order() {
    const name = $("sort").value;
    const down = $("order").getAttribute("aria-pressed") === "true" ? -1 : 1;
    if (!name) {
      if (down < 0) shown.reverse();
      return;
    }
    const column = columns.get(name);
    const keys = new Map(shown.map((row) => [row, column.kind === "number" ? column.of(row)[0] : text(column, row)]));
    const has = (key) => key !== undefined && key !== "";
    shown.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (!has(x) || !has(y)) return has(y) - has(x);
      return down * (column.kind === "number" ? Number(x) - Number(y) : collator.compare(x, y)) || a - b;
    });
  }

  // The grid: only the rows that can be seen are in the page.

  const grid = $("grid");
  const cells = new Map();
  let across = 1, side = 0, high = 0, focused = 0;
  const CAPTION = 72;
  function layout() {
    const wide = grid.clientWidth;
    across = Math.max(2, Math.floor(wide / 190));
    side = wide / across;
    high = Math.round(side + CAPTION);
    grid.style.height = `${Math.ceil(shown.length / across) * high}px`;
    for (const cell of cells.values()) cell.remove();
    cells.clear();
    draw();
  }
  function draw() {
    if ($("pictures").hidden) return;
    const top = -grid.getBoundingClientRect().top;
    const first = Math.max(0, (Math.floor(top / high) - 2) * across);
    const last = Math.min(shown.length, (Math.ceil((top + window.innerHeight) / high) + 2) * across);
    const holds = grid.contains(document.activeElement);
    for (const [place, cell] of cells) {
      if ((place < first || place >= last) && !(holds && place === focused)) {
        cell.remove();
        cells.delete(place);
      }
    }
    let before = null;
    for (let place = last - 1; place >= first; place--) {
      if (!cells.has(place)) {
        const cell = card(place);
        cells.set(place, cell);
        grid.insertBefore(cell, before);
      }
      before = cells.get(place);
    }
    rove(first, last);
  }
  // One card at a time is reached with Tab, the others with the arrow keys.
  function rove(first, last) {
    const reached = focused >= first && focused < last ? focused : first;
    for (const [place, cell] of cells) {
      for (const control of cell.querySelectorAll("button, input")) control.tabIndex = place === reached ? 0 : -1;
    }
  }
  function picture(row, small, alt) {
    const url = small ? data.pictures.thumb[row] : data.pictures.url[row];
    if (url === null) return make("span", { textContent: "no thumbnail" });
    // Of pictures of few pixels, each is seen where they are shown large.
    const few = !small && said("size", row).split("x").every((side) => side <= 256);
    return make("img", { src: url, alt, decoding: "async", className: few ? "few" : "" });
  }
  function title(row) {
    return said("prompt", row) || said("file.name", row);
  }
  function subtitle(row) {
    const parts = [["seed", "seed "], ["num_inference_steps", ""], ["size", ""]].flatMap(([name, label]) => {
      const value = said(name, row);
      return value ? [label + value + (name === "num_inference_steps" ? " steps" : "")] : [];
    });
    return parts.join(" · ") || "says nothing of its making";
  }
  function card(place) {
    const row = shown[place];
    const open = make("button", { type: "button", className: "open" },
      make("span", { className: "shot" }, picture(row, true, "")),
      make("span", { className: "says", textContent: title(row).slice(0, 300) }),
      make("span", { className: "sub", textContent: subtitle(row) }));
    open.addEventListener("click", () => { focused = place; show(place); });
    const box = make("input", { type: "checkbox", checked: picked.includes(row) });
    box.setAttribute("aria-label", `Compare ${title(row).slice(0, 100)}`);
    box.addEventListener("change", () => pick(row));
    const cell = make("li", { className: "cell" },
      make("div", { className: "card" }, open, make("label", { className: "tick" }, box, make("span", { textContent: "Compare" }))));
    cell.dataset.row = row;
    cell.classList.toggle("picked", picked.includes(row));
    cell.setAttribute("aria-posinset", place + 1);
    cell.setAttribute("aria-setsize", shown.length);
    Object.assign(cell.style, {
      width: `${side}px`, height: `${high}px`,
      transform: `translate(${(place % across) * side}px, ${Math.floor(place / across) * high}px)`,
    });
    return cell;
  }
  function focusOn(place) {
    focused = Math.max(0, Math.min(shown.length - 1, place));
    const top = grid.getBoundingClientRect().top + Math.floor(focused / across) * high;
    if (top < 0) window.scrollBy(0, top - 8);
    else if (top + high > window.innerHeight) window.scrollBy(0, top + high - window.innerHeight + 8);
    draw();
    cells.get(focused)?.querySelector(".open").focus({ preventScroll: true });
  }
  grid.addEventListener("focusin", (event) => {
    const cell = event.target.closest(".cell");
    for (const [place, one] of cells) if (one === cell) focused = place;
    rove(focused, focused + 1);
  });
  grid.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(window.innerHeight / high)) * across;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, PageDown: page, PageUp: -page };
    if (event.key in steps) focusOn(focused + steps[event.key]);
    else if (event.key === "Home") focusOn(0);
    else if (event.key === "End") focusOn(shown.length - 1);
    else if (event.key === "c" || event.key === "C") pick(shown[focused]);
    else return;
    event.preventDefault();
  });
  let waiting = false;
  window.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }, { passive: true });
  new ResizeObserver(() => { if (grid.clientWidth && Math.abs(grid.clientWidth - side * across) > 1) layout(); }).observe(grid);

  // Facets

  const FIRST = ["made by", "model", "scheduler", "lora", "size", "num_inference_steps", "tags.set"];
  const MOST = 60;
  function tally(name) {
    const column = columns.get(name), counts = new Map();
    const others = [...filters.keys()].filter((n) => n !== name);
    for (const row of matching) {
      if (!others.every((other) => passes(other, row))) continue;
      const found = column.of(row);
      if (!found.length) counts.set(null, (counts.get(null) ?? 0) + 1);
      for (const value of new Set(found)) counts.set(String(value), (counts.get(String(value)) ?? 0) + 1);
    }
    for (const value of filters.get(name).values) if (!counts.has(value)) counts.set(value, 0);
    return counts;
  }
  function facet(name) {
    if (!name || filters.has(name)) return;
    const column = columns.get(name);
    const filter = { values: new Set(), min: null, max: null, find: "", all: false };
    const remove = make("button", { type: "button", textContent: "✕" });
    remove.setAttribute("aria-label", `Filter by ${name} no more`);
    remove.addEventListener("click", () => { filters.delete(name); block.remove(); fields(); update(); });
    const block = make("fieldset", {}, make("div", { className: "facet-head" }, make("strong", { textContent: name }), remove));
    block.setAttribute("aria-label", name);
    filter.block = block;
    if (column.kind === "number") {
      const range = make("div", { className: "range" });
      for (const [end, label] of [["min", "from"], ["max", "to"]]) {
        const input = make("input", { type: "number", step: "any", placeholder: String(column[end]) });
        input.addEventListener("input", () => { filter[end] = input.value === "" ? null : Number(input.value); update(); });
        filter[`${end}Input`] = input;
        range.append(make("label", {}, label, input));
      }
      block.append(range);
    }
    const find = make("input", { type: "search", className: "find", placeholder: "find a value", hidden: true });
    find.setAttribute("aria-label", `Find a value of ${name}`);
    find.addEventListener("input", () => { filter.find = find.value.toLowerCase(); count(name); });
    filter.more = make("button", { type: "button", hidden: true });
    filter.more.addEventListener("click", () => { filter.all = true; count(name); });
    filter.list = make("ul");
    filter.findInput = find;
    block.append(find, filter.list, filter.more);
    filters.set(name, filter);
    $("facets").append(block);
  }
  function count(name) {
    const filter = filters.get(name), numeric = columns.get(name).kind === "number";
    const counts = [...tally(name)];
    counts.sort(([a, m], [b, n]) => (a === null) - (b === null) || (numeric ? Number(a) - Number(b) : n - m || collator.compare(a, b)));
    filter.findInput.hidden = counts.length <= 12;
    const found = counts.filter(([value]) => !filter.find || String(value ?? "not said").toLowerCase().includes(filter.find));
    const most = filter.all ? 1000 : MOST;
    const active = document.activeElement?.dataset?.value, holds = filter.list.contains(document.activeElement);
    filter.list.replaceChildren(...found.slice(0, most).map(([value, times]) => {
      const box = make("input", { type: "checkbox", checked: filter.values.has(value) });
      box.dataset.value = String(value);
      box.addEventListener("change", () => { box.checked ? filter.values.add(value) : filter.values.delete(value); update(); });
      return make("li", {}, make("label", {}, box,
        make("span", { className: "value", textContent: value === null ? "not said" : value.slice(0, 200) || "(empty)" }),
        make("span", { className: "times", textContent: number(times) })));
    }));
    // The list is made anew: the box that was pressed keeps the focus.
    if (holds) [...filter.list.querySelectorAll("input")].find((box) => box.dataset.value === active)?.focus();
    filter.more.hidden = found.length <= most || filter.all;
    filter.more.textContent = `Show ${number(Math.min(1000, found.length) - MOST)} more`;
  }
  function chips() {
    const made = [];
    const chip = (label, off) => {
      const button = make("button", { type: "button", textContent: `${label} ✕`, title: label });
      button.setAttribute("aria-label", `Remove the filter ${label}`);
      button.addEventListener("click", () => { off(); update(); });
      made.push(make("li", {}, button));
    };
    for (const [name, filter] of filters) {
      for (const value of filter.values) chip(`${name}: ${(value ?? "not said").slice(0, 80)}`, () => filter.values.delete(value));
      for (const [end, sign] of [["min", "≥"], ["max", "≤"]]) {
        if (filter[end] !== null) chip(`${name} ${sign} ${filter[end]}`, () => { filter[end] = null; filter[`${end}Input`].value = ""; });
      }
    }
    if (made.length > 1) {
      const clear = make("button", { type: "button", textContent: "Clear all" });
      clear.addEventListener("click", () => {
        for (const filter of filters.values()) {
          filter.values.clear();
          for (const end of ["min", "max"]) if (filter[`${end}Input`]) { filter[end] = null; filter[`${end}Input`].value = ""; }
        }
        update();
      });
      made.push(make("li", {}, clear));
    }
    $("chips").replaceChildren(...made);
  }
  function fields() {
    $("field").replaceChildren(make("option", { value: "", textContent: "choose one …" }),
      ...grouped((c) => !filters.has(c.name), (c) => `${c.name} (${number(c.distinct)})`));
  }
  function grouped(wanted, label) {
    const groups = [[false, "What was asked"], [true, MADE]].map(([made, name]) => make("optgroup", { label: name },
      ...[...columns.values()].filter((c) => c.made === made && c.distinct > 1 && wanted(c))
        .map((c) => make("option", { value: c.name, textContent: label(c) }))));
    return groups.filter((group) => group.childElementCount);
  }

  // One picture

  const detail = $("detail");
  let current = 0;
  function show(place) {
    current = place;
    const row = shown[place];
    $("place").textContent = `${number(place + 1)} of ${number(shown.length)}`;
    $("whole").href = data.pictures.url[row];
    $("whole").replaceChildren(picture(row, false, title(row).slice(0, 300)));
    $("caption").textContent = said("file.name", row);
    $("detail-title").textContent = title(row);
    $("again").hidden = !data.pictures.from[row];
    for (const kind of ["from", "full"]) {
      const line = data.pictures[kind][row];
      $(kind).hidden = !line;
      // An option is not broken at its dashes.
      const parts = (line ?? "").split(/(?<= )(--[a-z-]+)/);
      $(kind).firstElementChild.replaceChildren(...parts.map((part, n) => (n % 2 ? make("span", { textContent: part }) : part)));
    }
    $("note").textContent = data.pictures.note[row] ?? "";
    $("note").hidden = !data.pictures.note[row];
    $("copied").textContent = "";
    const rows = [[], []];
    for (const column of columns.values()) {
      const value = text(column, row);
      if (value !== "") rows[Number(column.made)].push(make("tr", {}, head(column.name), make("td", { textContent: value })));
    }
    detail.querySelector("tbody").replaceChildren(...rows[0], heading(2), ...rows[1]);
    picks();
    for (const button of detail.querySelectorAll("[data-go]")) {
      button.disabled = !(place + Number(button.dataset.go) in shown);
    }
    opened(detail);
    detail.querySelector(".body").scrollTop = detail.querySelector(".facts").scrollTop = 0;
  }
  function head(name) {
    // Long names break where they are made of parts.
    const parts = name.split(/(?<=[._])/).flatMap((part) => [part, make("wbr")]);
    return make("th", { scope: "row" }, ...parts.slice(0, -1));
  }
  const heading = (colSpan) => make("tr", { className: "group" }, make("th", { scope: "rowgroup", colSpan, textContent: MADE }));
  for (const button of detail.querySelectorAll("[data-go]")) {
    button.addEventListener("click", () => show(current + Number(button.dataset.go)));
  }
  detail.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target.closest("code") || !(current + step in shown)) return;
    event.preventDefault();
    show(current + step);
  });
  detail.addEventListener("close", () => focusOn(current));
  $("pick").addEventListener("click", () => pick(shown[current]));

  async function copy(button) {
    const code = button.previousElementSibling;
    let done = false;
    try {
      await navigator.clipboard.writeText(code.textContent);
      done = true;
    } catch {
      // A page that was opened as a file may have no clipboard: the text is selected, for whoever copies it.
      const range = document.createRange();
      range.selectNodeContents(code);
      const selection = getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      code.focus();
      try {
        done = document.execCommand("copy");
      } catch {
        done = false;
      }
    }
    $("copied").textContent = done ? `Copied: run it in ${folder()}` : "Selected: copy it with Ctrl+C, or ⌘C.";
  }
  function folder() {
    try {
      if (location.protocol === "file:") return decodeURIComponent(location.pathname.replace(/[^/]*$/, ""));
    } catch {
      // Its bytes are no Unicode.
    }
    return "the page's folder";
  }
  for (const button of detail.querySelectorAll(".command button")) button.addEventListener("click", () => copy(button));
  $("from").lastElementChild.setAttribute("aria-label", "Copy the command that reads the picture");
  $("full").lastElementChild.setAttribute("aria-label", "Copy the command with all its options");

  // Two pictures

  const picked = [];
  function pick(row) {
    const at = picked.indexOf(row);
    if (at >= 0) picked.splice(at, 1);
    else {
      if (picked.length === 2) picked.shift();
      picked.push(row);
    }
    picks();
  }
  function picks() {
    for (const cell of cells.values()) {
      const is = picked.includes(Number(cell.dataset.row));
      cell.classList.toggle("picked", is);
      cell.querySelector("input").checked = is;
    }
    $("tray").hidden = picked.length === 0 || $("pictures").hidden;
    $("tray").firstElementChild.replaceChildren(...picked.map((row) => make("li", {}, picture(row, true, title(row).slice(0, 100)))));
    $("compare").disabled = picked.length < 2;
    $("compare").textContent = picked.length < 2 ? "Pick one more to compare" : "Compare the two";
    const is = detail.open && picked.includes(shown[current]);
    $("pick").setAttribute("aria-pressed", is);
    $("pick").textContent = is ? "Picked to compare" : "Pick to compare";
  }
  const PIECES = /[\s,]+|[^\s,]+/g;
  function marked(value, other) {
    const known = new Set(other.match(PIECES));
    const pieces = value.length < 20000 ? value.match(PIECES) ?? [] : [value];
    return pieces.map((piece) => (known.has(piece) || !piece.trim() ? piece : make("mark", { textContent: piece })));
  }
  function pair() {
    const [a, b] = picked;
    const pictures = [a, b].map((row) => make("td", {}, picture(row, false, title(row).slice(0, 300)), said("file.name", row)));
    $("pair").querySelector("thead").replaceChildren(make("tr", {}, make("td"), ...pictures));
    const rows = [[], []];
    for (const column of columns.values()) {
      const [x, y] = [text(column, a), text(column, b)];
      if (x === y && (x === "" || $("only").checked)) continue;
      const line = make("tr", {}, head(x === y ? column.name : `≠ ${column.name}`));
      if (x === y) line.append(make("td", { textContent: x }), make("td", { textContent: y }));
      else line.append(...[[x, y], [y, x]].map(([one, other]) => make("td", {}, ...(one === "" ? ["–"] : marked(one, other)))));
      line.classList.toggle("differs", x !== y);
      rows[Number(column.made)].push(line);
    }
    if (!rows[0].length) rows[0].push(make("tr", {}, make("td", { colSpan: 3, textContent: "Nothing that was asked differs." })));
    if (rows[1].length) rows[1].unshift(heading(3));
    $("pair").querySelector("tbody").replaceChildren(...rows.flat());
    opened($("pair"));
  }
  $("compare").addEventListener("click", () => { if (picked.length === 2) pair(); });
  $("only").addEventListener("change", pair);
  $("forget").addEventListener("click", () => { picked.length = 0; picks(); focusOn(focused); });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => { if (pushed) history.back(); });
  }
  // The browser's Back closes what is open, as phones have it; where one was scrolled to is looked after here.
  let pushed = false;
  function opened(dialog) {
    if (dialog.open) return;
    dialog.showModal();
    try {
      history.scrollRestoration = "manual";
      history.pushState(null, "");
      pushed = true;
    } catch {
      // Some browsers let a page do so only so often.
    }
  }
  window.addEventListener("popstate", () => {
    pushed = false;
    for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
    history.scrollRestoration = "auto";
  });

  // What went wrong

  const most = { failures: 200, unreadable: 200 };
  function entry(one) {
    const parts = [make("span", { className: "code", textContent: one.code }), one.message];
    if (one.path) parts.splice(1, 0, make("strong", { textContent: `${one.path} ` }));
    if (one.hint) parts.push(make("small", { textContent: one.hint }));
    const asked = [one.prompt, one.seed != null && `seed ${one.seed}`].filter(Boolean).join(" · ");
    if (asked) parts.push(make("small", { textContent: asked }));
    const where = [one.line && `line ${one.line} of the prompts`, one.journal && `journal ${one.journal}`,
      one.id && `job ${one.id.slice(0, 12)}`, one.time?.replace("T", " ").replace(/\.\d+\+00:00$/, " UTC")];
    if (one.journal) parts.push(make("small", { textContent: where.filter(Boolean).join("; ") }));
    return make("li", {}, ...parts);
  }
  function says(one, word) {
    const at = word.indexOf(":"), name = word.slice(0, at), value = word.slice(at + 1).trim();
    if (at < 1 || !Object.hasOwn(one, name)) return Object.values(one).join("\n").toLowerCase().includes(word);
    return typeof one[name] === "number" && value ? String(one[name]) === value : String(one[name] ?? "").toLowerCase().includes(value);
  }
  function list(kind) {
    const section = $(kind);
    if (section.hidden) return;
    const asked = words($("search").value), code = kind === "failures" ? $("code").value : "";
    const found = data[kind].filter((one) => (!code || one.code === code) && asked.every((word) => says(one, word)));
    section.querySelector("[role=status]").textContent = (found.length === data[kind].length ? "" : `${number(found.length)} of `) +
      (kind === "failures" ? many(data[kind].length, "failure") : `${many(data[kind].length, "picture")} that can't be read`);
    section.querySelector(".entries").replaceChildren(...found.slice(0, most[kind]).map(entry));
    section.querySelector(".more").hidden = found.length <= most[kind];
  }
  for (const kind of ["failures", "unreadable"]) {
    $(kind).querySelector(".more").addEventListener("click", () => { most[kind] += 500; list(kind); });
  }
  const codes = new Map();
  for (const one of data.failures) codes.set(one.code, (codes.get(one.code) ?? 0) + 1);
  $("code").append(make("option", { value: "", textContent: "all" }),
    ...[...codes].map(([code, times]) => make("option", { value: code, textContent: `${code} (${number(times)})` })));
  $("code").addEventListener("change", () => list("failures"));

  function view(name) {
    for (const button of document.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-pressed", button.dataset.view === name);
      $(button.dataset.view).hidden = button.dataset.view !== name;
    }
    for (const tool of document.querySelectorAll(".for-pictures")) tool.hidden = name !== "pictures";
    picks();
    name === "pictures" ? layout() : list(name);
    keep();
  }
  for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => view(button.dataset.view));

  // What is looked for, in the page's address: it outlives a reload, and is sent with a link

  function keep() {
    if (!started) return;
    const kept = new URLSearchParams();
    for (const [key, id] of [["q", "search"], ["in", "scope"], ["sort", "sort"]]) if ($(id).value) kept.set(key, $(id).value);
    if ($("order").getAttribute("aria-pressed") === "true") kept.set("down", "1");
    for (const other of ["failures", "unreadable"]) if (!$(other).hidden) kept.set("view", other);
    for (const [name, f] of filters) if (isUsed(f)) kept.append("f", JSON.stringify([name, [...f.values], f.min, f.max]));
    try {
      history.replaceState(null, "", `${kept}` ? `#${kept}` : location.pathname + location.search);
    } catch {
      // Some browsers let a page do so only so often.
    }
  }
  function restore() {
    const kept = new URLSearchParams(location.hash.slice(1));
    $("search").value = kept.get("q") ?? "";
    for (const [select, key] of [["scope", "in"], ["sort", "sort"]]) {
      const asked = kept.get(key);
      if ([...$(select).options].some((o) => o.value === asked)) $(select).value = asked;
    }
    if (kept.get("down") === "1") downwards(true);
    for (const json of kept.getAll("f")) {
      try {
        const [name, values, ...bounds] = JSON.parse(json);
        if (!columns.has(name) || !Array.isArray(values)) continue;
        facet(name);
        const filter = filters.get(name);
        for (const value of values) if (value === null || typeof value === "string") filter.values.add(value);
        for (const [n, end] of ["min", "max"].entries()) {
          if (filter[`${end}Input`] && Number.isFinite(bounds[n])) filter[`${end}Input`].value = filter[end] = bounds[n];
        }
      } catch {
        // Somebody else's.
      }
    }
    for (const button of document.querySelectorAll("[data-view]")) if (button.dataset.view === kept.get("view")) button.click();
  }
  // Only somebody who types in the address, or follows a link, changes it so.
  window.addEventListener("hashchange", () => location.reload());

  // The start

  for (const name of ["prompt", "negative_prompt", "file.name"]) {
    if (columns.has(name)) $("scope").append(make("option", { value: name, textContent: name }));
  }
  $("sort").append(make("option", { value: "", textContent: "path" }),
    ...grouped(() => true, (c) => c.name));
  $("search").addEventListener("input", () => { update(); for (const kind of ["failures", "unreadable"]) list(kind); });
  $("scope").addEventListener("change", update);
  $("sort").addEventListener("change", update);
  function downwards(down) {
    $("order").setAttribute("aria-pressed", down);
    $("order").textContent = down ? "↓" : "↑";
  }
  $("order").addEventListener("click", () => {
    downwards($("order").getAttribute("aria-pressed") !== "true");
    update();
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    focusOn(0);
  });
  $("search").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" || $("pictures").hidden) return;
    event.preventDefault();
    focusOn(0);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input:not([type=checkbox]), select, dialog")) return;
    event.preventDefault();
    $("search").focus();
  });
  $("field").addEventListener("change", () => { facet($("field").value); fields(); update(); });
  $("filters").open = matchMedia("(min-width: 52.01rem)").matches;
  for (const name of FIRST) if (columns.has(name) && columns.get(name).distinct > 1 && filters.size < 4) facet(name);
  if (!total) view(data.failures.length ? "failures" : "unreadable");
  restore();
  fields();
  started = true;
  update();
  // What the first search needs is made ready while nobody waits.
  (window.requestIdleCallback ?? ((later) => setTimeout(later, 300)))(() => haystack(""));
})();
