// Heads of tables are buttons that sort: numbers by data-value, words as words, what is missing last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
    const rising = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
    const key = row => {
      const cell = row.cells[place], value = cell.dataset.value;
      return value === undefined ? cell.textContent : value === "" ? null : Number(value);
    };
    const compare = (a, b) => typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
    const rows = [...body.rows].map(row => [key(row), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : rising ? compare(a, b) : compare(b, a));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    body.append(...rows.map(([, row]) => row));
  }));
}
