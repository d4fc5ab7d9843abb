"use strict";
// The charts of a page: plotly.js is unpacked once the page stands, and each `.chart` drawn when it comes into view.

(async () => {
  const charts = [...document.querySelectorAll(".chart")];
  for (const chart of charts) fillTable(chart, JSON.parse(chart.dataset.chart));
  const bytes = Uint8Array.from(atob(document.getElementById("plotly-source").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  // as in the figures: a split has one colour, other curves those of the classes
  function look(name, i) {
    const split = name.split("/")[0];
    if (split === "dev") return { color: css("--dev") };
    if (split === "train" || split === "train_eval") return { color: css("--train"), dash: split === "train" ? "solid" : "dash" };
    return { color: css(`--class-${i % 10}`), dash: DASHES[i % DASHES.length] };
  }

  function layout(data) {
    const colour = css("--ink"), grid = css("--faint");
    const axis = { color: colour, gridcolor: grid, zerolinecolor: grid, automargin: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour, family: "system-ui, sans-serif" },
      margin: { l: 50, r: 10, t: 10, b: 40 }, hovermode: data.kind === "points" ? "closest" : "x unified",
      hoverlabel: { bgcolor: css("--paper"), font: { color: colour } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, showlegend: data.series.length > 1,
      xaxis: { ...axis, title: { text: data.x }, ...(data.kind === "points" ? { type: "category", categoryarray: data.series.at(-1).x } : {}), ...(data.x === "epoch" && data.series[0].x.length < 9 ? { dtick: 1 } : {}) }, yaxis: { ...axis, ...spread(data) },
    };
  }

  // The first epochs of a long run would flatten all that follows.
  function spread(data) {
    const late = data.series.flatMap((one) => one.y.slice(Math.floor(one.y.length / 10))), all = data.series.flatMap((one) => one.y);
    const [low, high] = [Math.min(...late), Math.max(...late)];
    if (data.kind === "points" || data.series[0].y.length < 20 || Math.max(...all) - Math.min(...all) < 2 * (high - low)) return {};
    return { range: [low - 0.05 * (high - low), high + 0.15 * (high - low)] };
  }

  function traces(data) {
    return data.series.map((one, i) => ({
      name: one.name, x: one.x, y: one.y, text: one.text, type: "scatter",
      mode: one.mode || (one.x.length < 3 ? "lines+markers" : "lines"),
      error_y: one.error && { array: one.error },
      line: { width: 2, ...look(one.name, i) },
    }));
  }

  // without plotly's buttons: the pointer and the keys do what they do, and they are links without names
  const CONFIG = { responsive: true, displayModeBar: false };
  function draw(chart) {
    const data = JSON.parse(chart.dataset.chart);
    return Plotly.react(chart, traces(data), layout(data), CONFIG);
  }

  function fillTable(chart, data) {
    const place = chart.parentElement.querySelector("details div"), table = document.createElement("table");
    const names = [data.x, ...data.series.map((one) => one.name)];
    const heads = table.createTHead().insertRow();
    for (const name of names) heads.append(Object.assign(document.createElement("th"), { textContent: name, scope: "col" }));
    const at = data.series.map((one) => new Map(one.x.map((x, i) => [x, one.y[i]])));
    const body = table.createTBody();
    for (const x of new Set(data.series.flatMap((one) => one.x))) {
      const row = body.insertRow();
      for (const value of [x, ...at.map((values) => values.get(x) ?? "")]) row.insertCell().textContent = value;
    }
    place.append(table);
  }

  function keyboard(chart) {
    const data = JSON.parse(chart.dataset.chart), at = { curve: 0, point: -1 };
    const say = document.createElement("span");
    say.setAttribute("role", "status");
    say.className = "help";
    chart.after(say);
    chart.addEventListener("keydown", async (event) => {
      const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
      if (!moves[event.key] && !["+", "-", "0"].includes(event.key)) return;
      event.preventDefault();
      await drawOnce(chart);
      if (moves[event.key]) {
        const [curve, point] = moves[event.key], bounded = (v, n) => Math.min(n - 1, Math.max(0, v));
        at.curve = bounded(at.curve + curve, data.series.length);
        const one = data.series[at.curve];
        at.point = bounded(at.point + point, one.x.length);
        say.textContent = `${one.name}, ${one.text ? one.text[at.point] + ", " : ""}${data.x} ${one.x[at.point]}: ${one.y[at.point]}`;
        Plotly.Fx.hover(chart, [{ curveNumber: at.curve, pointNumber: at.point }]);
      } else await zoom(chart, event.key);
    });
  }
  function zoom(chart, key) {
    if (key === "0") return Plotly.relayout(chart, { "xaxis.autorange": true, "yaxis.autorange": true });
    const change = {};
    for (const axis of ["xaxis", "yaxis"]) {
      const [low, high] = chart._fullLayout[axis].range, by = ((high - low) / 2) * (key === "+" ? 0.8 : 1.25), middle = (low + high) / 2;
      change[`${axis}.range`] = [middle - by, middle + by];
    }
    return Plotly.relayout(chart, change);
  }

  const begun = new Map();
  function drawOnce(chart) {
    if (!begun.has(chart)) begun.set(chart, draw(chart));
    return begun.get(chart);
  }
  const view = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => drawOnce(entry.target)),
    { rootMargin: "30%" },
  );
  for (const chart of charts) {
    keyboard(chart);
    view.observe(chart);
  }
  window.addEventListener("beforeprint", () => charts.forEach(drawOnce));
  dark.addEventListener("change", () => [...begun.keys()].forEach(draw));
  window.charts = { drawOnce };
  performance.mark("charts");
})();
