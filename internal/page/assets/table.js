// A table body whose rows stay in place from frame to frame: cells are written
// only where they change, so that a selection or a reader's place is kept.
import { el, write } from "./text.js";

// fill makes the body's rows those of items. columns(item) gives the cells, each
// {text, class}; the first one is the row's header.
export function fill(body, items, key, columns) {
  const old = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  let place = body.firstElementChild;
  for (const item of items) {
    const id = key(item);
    let row = old.get(id);
    const cells = columns(item);
    if (row === undefined) {
      row = el("tr", { "data-key": id }, ...cells.map((_, i) => (i === 0 ? el("th", { scope: "row" }) : el("td"))));
    } else {
      old.delete(id);
    }
    cells.forEach((cell, i) => {
      const c = row.cells[i];
      write(c, cell.text);
      if (c.className !== (cell.class ?? "")) c.className = cell.class ?? "";
      if (cell.class?.includes("long") && c.title !== cell.text) c.title = cell.text;
    });
    if (row === place) place = place.nextElementSibling;
    else body.insertBefore(row, place);
  }
  for (const row of old.values()) row.remove();
}

// number is a cell that steps back when there is nothing to see.
export function number(value, text, alarming = "") {
  return { text, class: "n " + (value === 0 ? "zero" : alarming) };
}
