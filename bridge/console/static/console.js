// Polls rest while nobody looks; charts; tick all. Everything else works without a script.
"use strict";

document.addEventListener("htmx:beforeRequest", (event) => {
  const polls = event.target.hasAttribute && event.target.hasAttribute("data-poll");
  if (polls && (document.hidden || event.target.contains(document.activeElement))) event.preventDefault();
});

// A refused action answers with the reason, which is shown too.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status >= 400 && event.detail.xhr.status < 503 && !event.target.hasAttribute("data-poll")) {
    event.detail.shouldSwap = true;
    event.detail.isError = false;
  }
});

document.addEventListener("htmx:afterSwap", (event) => {
  if (event.target.id === "overview") {
    const ready = event.target.querySelector(".state .word").textContent;
    document.title = (ready === "ready" ? "ready" : "NOT READY") + " - Outbox Bridge";
  }
});
document.addEventListener("htmx:sendError", () => { document.title = "UNREACHABLE - Outbox Bridge"; });

document.addEventListener("change", (event) => {
  const all = event.target.getAttribute && event.target.getAttribute("data-all");
  if (all) document.querySelectorAll(`input[name="${all}"]`).forEach((one) => { one.checked = event.target.checked; });
});

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const short = (value) => {
  if (value === null) return "";
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return `${+(value / size).toPrecision(3)}${unit}`;
  }
  return `${+value.toPrecision(3)}`;
};

async function draw(place) {
  let told;
  try {
    const answer = await fetch(place.dataset.charts, { cache: "no-store" });
    if (!answer.ok) return;
    told = await answer.json();
  } catch { return; }
  place.querySelectorAll("[data-series]").forEach((chart) => {
    const names = chart.dataset.series.split(",");
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const lines = names.map((name, at) => ({
      label: name, stroke: at ? colour("--wait") : colour("--mark"), width: 1.5, spanGaps: false,
      points: { size: 4 }, value: (_, value) => (value === null || value === undefined ? "-" : short(value)),
    }));
    const options = {
      width: Math.max(260, chart.clientWidth), height: 150, legend: { show: true }, cursor: { y: false },
      scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      series: [{ value: (_, at) => (at ? new Date(at * 1000).toISOString().slice(11, 16) : "-") }, ...lines],
      tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
      axes: [{ ...axis, space: 70, values: (_, ticks) => ticks.map((at) => new Date(at * 1000).toISOString().slice(11, 16)) }, { ...axis, size: 52, values: (_, values) => values.map(short) }],
    };
    chart.replaceChildren();
    new uPlot(options, [told.at, ...names.map((name) => told[name])], chart);
  });
  place.dataset.drawn = "yes";
}

function charts() {
  const place = document.querySelector("[data-charts]");
  if (!place) return;
  draw(place);
  setInterval(() => { if (!document.hidden) draw(place); }, 30000);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(place));
}
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", charts); else charts();
