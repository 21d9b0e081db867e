"use strict";
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const theme = byId("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; });

  const element = byId("moments");
  if (!element) return;
  const data = JSON.parse(element.textContent);
  const chart = byId("chart"), slider = byId("slider"), mark = byId("mark");
  const units = [["GiB", 2 ** 30, 2], ["MiB", 2 ** 20, 1], ["KiB", 2 ** 10, 1]];
  const size = (bytes) => {
    const unit = units.find((each) => Math.abs(bytes) >= each[1]);
    return unit ? `${(bytes / unit[1]).toFixed(unit[2])} ${unit[0]}` : `${bytes} B`;
  };
  const row = (name, bytes, most, kind) => {
    const line = document.createElement("div");
    line.className = "row";
    const label = document.createElement("span"), figure = document.createElement("b");
    const bar = document.createElement("em"), fill = document.createElement("i");
    label.textContent = name;
    figure.textContent = size(bytes);
    fill.style.width = `${most ? (100 * bytes) / most : 0}%`;
    if (kind) fill.className = kind;
    bar.append(fill);
    line.append(label, figure, bar);
    return line;
  };
  const fill = (id, items) => {
    const most = Math.max(...items.map((item) => item[1]), 1);
    byId(id).replaceChildren(...items.map(([name, bytes, kind]) => row(name, bytes, most, kind)));
  };
  const show = (index) => {
    const moment = data.moments[index];
    mark.style.left = `${moment.x}%`;
    slider.value = index;
    byId("when").textContent = `${moment.when}: ${size(moment.bytes)} allocated, ${size(moment.reserved)} reserved`;
    byId("last").textContent = moment.last;
    fill("by-purpose", moment.buckets.map((bytes, at) => [data.buckets[at], bytes, data.buckets[at]]).filter((item) => item[1]));
    fill("by-source", moment.sources.map(([at, bytes]) => [data.names[at], bytes]));
    fill("by-module", moment.modules.map(([at, bytes]) => [data.names[at], bytes]));
  };
  const nearest = (x) => data.moments.reduce((best, moment, at) =>
    Math.abs(moment.x - x) < Math.abs(data.moments[best].x - x) ? at : best, 0);
  const choose = (event) => {
    const box = chart.getBoundingClientRect();
    show(nearest((100 * (event.clientX - box.left)) / box.width));
  };
  chart.addEventListener("click", choose);
  chart.addEventListener("pointermove", (event) => { if (event.buttons) choose(event); });
  slider.addEventListener("input", () => show(Number(slider.value)));
  slider.max = data.moments.length - 1;
  slider.hidden = false;
  byId("hint").hidden = false;
  show(data.peak);
})();
