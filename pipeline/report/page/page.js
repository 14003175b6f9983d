"use strict";
// Themes, charts, sorting and filtering. No chart is needed for the rest to work.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");

  // Okabe and Ito's colours, lighter where the paper is dark.
  const COLOURS = {
    light: ["#0072B2", "#D55E00", "#007A5A", "#B0558A", "#8A6D00", "#5B5B5B"],
    dark: ["#56B4E9", "#FF9E5E", "#2FD6A3", "#E6A5CB", "#F0C63C", "#B5B5B5"],
  };

  function configuration(theme, place) {
    const style = getComputedStyle(root);
    const ink = style.getPropertyValue("--ink").trim();
    const line = style.getPropertyValue("--line").trim();
    const text = { labelColor: ink, titleColor: ink, labelFontSize: 12, titleFontSize: 12 };
    return {
      aria: false, // the picture has one description, and its table
      background: null,
      font: "system-ui, sans-serif",
      view: { stroke: null },
      range: { category: COLOURS[theme] },
      axis: { ...text, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: "normal" },
      legend: { ...text, columns: place.clientWidth < 500 ? 1 : 4 },
      mark: { color: COLOURS[theme][0] },
      rule: { color: ink },
      line: { strokeWidth: 2 },
    };
  }

  function draw(theme) {
    if (!window.vegaEmbed) return;
    for (const place of document.querySelectorAll("[data-chart]")) {
      const spec = JSON.parse(document.getElementById(place.dataset.chart).textContent);
      const choice = place.closest("figure").querySelector(".choice");
      choice.replaceChildren();
      const options = {
        actions: false, ast: true, renderer: "svg", config: configuration(theme, place),
        tooltip: { theme }, bind: choice,
      };
      window.vegaEmbed(place, spec, options).catch((error) => {
        place.textContent = `This chart could not be drawn: ${error.message}`;
        console.error(error);
      });
    }
  }

  function take(theme) {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
    draw(theme);
  }

  const prefers = window.matchMedia("(prefers-color-scheme: dark)");
  prefers.addEventListener("change", () => take(prefers.matches ? "dark" : "light"));
  button.addEventListener("click", () => take(root.dataset.theme === "dark" ? "light" : "dark"));
  take(prefers.matches ? "dark" : "light");

  const collator = new Intl.Collator("en", { numeric: true });

  function sort(head) {
    const table = head.closest("table");
    const column = [...head.parentNode.children].indexOf(head);
    const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const compare = (one, other) => {
      const [a, b] = [one.cells[column], other.cells[column]];
      const [x, y] = [a.dataset.value, b.dataset.value];
      if (x !== undefined && y !== undefined) return sign * (Number(x) - Number(y));
      // What has no figure comes last, whatever the direction.
      if (x !== undefined || y !== undefined) return x === undefined ? 1 : -1;
      return sign * collator.compare(a.textContent, b.textContent);
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
  }

  for (const head of document.querySelectorAll("thead th")) {
    head.firstElementChild.addEventListener("click", () => sort(head));
  }

  for (const input of document.querySelectorAll("[data-filter]")) {
    const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
    const told = input.parentNode.querySelector("[role=status]");
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
      told.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    });
  }

  window.addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
})();
