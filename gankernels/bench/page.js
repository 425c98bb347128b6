"use strict";

// A column of numbers sorts by data-value, text as people count: block 9 before block 10. What is empty comes last, always.
function sort(header) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  const body = header.closest("table").tBodies[0];
  const numbers = header.classList.contains("number");
  const read = (row) => {
    const cell = row.cells[header.cellIndex];
    return numbers ? cell.dataset.value : cell.textContent.trim();
  };
  const compare = numbers
    ? (a, b) => Number(a) - Number(b)
    : (a, b) => a.localeCompare(b, "en", { numeric: true });
  const keyed = Array.from(body.rows, (row) => [read(row), row]);
  keyed.sort(([a], [b]) => (a === "") - (b === "") || (a === "" ? 0 : descending ? compare(b, a) : compare(a, b)));
  body.append(...keyed.map(([, row]) => row));
  for (const other of header.parentElement.cells) {
    if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  }
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const header of document.querySelectorAll("th[aria-sort]")) {
  header.querySelector("button").addEventListener("click", () => sort(header));
}

const form = document.getElementById("filters");
const rows = Array.from(document.getElementById("all").tBodies[0].rows);
// Of a row the search sees names, not figures: "block 9" is no row of 9 ms.
const names = new Map(
  rows.map((row) => [row, Array.from(row.querySelectorAll("td:not(.number)"), (cell) => cell.textContent.toLowerCase())]),
);

function filter() {
  const wanted = Object.fromEntries(new FormData(form));
  const keeps = (element) => ["op", "dtype", "mode"].every((key) => !wanted[key] || element.dataset[key] === wanted[key]);
  for (const element of document.querySelectorAll("[data-op]")) element.hidden = !keeps(element);
  for (const section of document.querySelectorAll("details.op")) section.hidden = !section.querySelector(".panel:not([hidden])");
  const sought = wanted.search.toLowerCase().split(/\s+/);
  for (const row of rows) {
    const found = sought.every((word) => names.get(row).some((name) => name.includes(word)));
    if (!found || (wanted.rows && !row.classList.contains(wanted.rows))) row.hidden = true;
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = `${shown} of ${rows.length}`;
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter();
