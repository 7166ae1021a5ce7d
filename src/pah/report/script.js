// A click on a column title sorts the table. A button switches between the light and the dark theme.
"use strict";

const root = document.documentElement;
const theme = document.getElementById("theme");
const isDark = () =>
  root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));

theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
showTheme();

const NUMBER = /^[+-]?\d+(\.\d+)?(e[+-]?\d+)?(?= |$)/; // a number, alone or before ±, but no version such as 2.14.1
const textOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();

document.querySelectorAll("th button").forEach((button) =>
  button.addEventListener("click", () => {
    const title = button.parentElement;
    const body = title.closest("table").tBodies[0];
    const rows = [...body.rows];
    const column = title.cellIndex;
    const texts = rows.map((row) => textOf(row, column)).filter((text) => text !== "");
    const numeric = texts.every((text) => NUMBER.test(text));
    const order = title.ariaSort === "ascending" ? -1 : 1;
    rows.sort((one, other) => {
      const [a, b] = [textOf(one, column), textOf(other, column)];
      if (a === "" || b === "") return (a === "") - (b === ""); // empty cells are last in both orders
      return order * (numeric ? parseFloat(a) - parseFloat(b) : a.localeCompare(b, undefined, { numeric: true }));
    });
    for (const other of title.parentElement.cells) other.ariaSort = "none";
    title.ariaSort = order === 1 ? "ascending" : "descending";
    body.append(...rows);
  }),
);
