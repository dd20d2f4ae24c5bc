"""What the demo looks like: fonts of the visitor's own system (nothing is fetched), light and dark from gradio's variables."""

import gradio as gr

THEME = gr.themes.Soft(
    primary_hue="blue",
    neutral_hue="slate",
    font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
)

# Okabe and Ito's blue and vermilion; in the dark the blue is lighter. Plain is the color of the text.
CSS = """
:root { --kts-shaped: #0068a5; --kts-copied: #b34700; --kts-warn: #fff1e6; }
.dark { --kts-shaped: #66c2ff; --kts-copied: #ff9a52; --kts-warn: #3b2210; }
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container .head > label { flex: 1 1 auto; } /* a slider's name wraps as a whole, above its number */
.kts-chart { width: 100%; height: auto; display: block; font-family: inherit; }
.kts-chart .grid { stroke: var(--border-color-primary); stroke-width: 1; }
.kts-chart .mark { stroke: var(--body-text-color-subdued); stroke-width: 1.2; stroke-dasharray: 3 4; }
.kts-chart text { fill: var(--body-text-color-subdued); font-size: 12px; /* readable on top of lines */
  paint-order: stroke; stroke: var(--body-background-fill); stroke-width: 4px; stroke-linejoin: round; }
.kts-chart .label { fill: var(--body-text-color); font-size: 13px; }
.kts-chart .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.kts-chart .line.plain { stroke: var(--body-text-color); stroke-dasharray: 6 4; }
.kts-chart .line.shaped { stroke: var(--kts-shaped); }
.kts-chart .band { opacity: .16; stroke: none; }
.kts-chart .band.plain { fill: var(--body-text-color); }
.kts-chart .band.shaped { fill: var(--kts-shaped); }
.kts-chart .step { fill: var(--kts-shaped); stroke: var(--background-fill-primary); stroke-width: .8; }
.kts-chart .step.landing, .kts-chart .step.touch { fill: var(--kts-copied); }
.kts-chart .unsafe { fill: var(--kts-copied); opacity: .22; }
.kts-chart .point { cursor: pointer; stroke: var(--background-fill-primary); stroke-width: 1; opacity: .85; }
.kts-chart .point.plain { fill: var(--body-text-color); }
.kts-chart .point.shaped { fill: var(--kts-shaped); }
.kts-chart .point:hover, .kts-chart .point:focus, .kts-chart .point.chosen {
  stroke: var(--kts-copied); stroke-width: 3.5; opacity: 1; outline: none;
}
.kts-figure { margin: 0 auto; max-width: 760px; }
.kts-figure figcaption { font-size: 13px; color: var(--body-text-color-subdued); text-align: center; padding-top: 2px; }
.kts-warning { margin: 8px 0 0; padding: 8px 12px; border-left: 4px solid var(--kts-copied); border-radius: 4px;
  background: var(--kts-warn); color: var(--body-text-color); font-size: 14px; }
.key.shaped { color: var(--kts-shaped); }
.kts-scroll { overflow-x: auto; contain: inline-size; margin-bottom: 14px; /* a wide table scrolls, not the page */
  background: linear-gradient(to left, var(--body-background-fill) 8px, transparent 30px) right / 30px 100% no-repeat local,
    linear-gradient(to left, var(--border-color-primary), transparent) right / 14px 100% no-repeat scroll; }
.kts-table { width: 100%; max-width: 560px; margin: 0 auto;
  border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
.kts-table, .kts-sweep, .kts-table th, .kts-table td, .kts-table tr,
.kts-sweep th, .kts-sweep td, .kts-sweep tr { border: none !important; }
.kts-table th, .kts-table td { padding: 5px 10px !important; text-align: right !important; }
.kts-table tr + tr { border-top: 1px solid var(--border-color-primary) !important; }
.kts-table th:first-child { text-align: left !important; white-space: nowrap; }
#compared h3 { margin: 18px 0 4px; font-size: 15px; font-weight: 600; text-align: center; color: var(--body-text-color); }
.kts-pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(262px, 1fr)); gap: 12px; }
.kts-pairs.big { grid-template-columns: repeat(auto-fill, minmax(min(100%, 540px), 1fr)); }
.kts-pair { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 8px 12px 10px;
  background: var(--background-fill-primary); }
.kts-pair h4, .kts-detail h4 { margin: 0 0 6px; font-size: 14px; font-weight: 600; color: var(--body-text-color); }
.kts-pair > div { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; }
.kts-pair figure, .kts-detail figure { margin: 0; min-width: 0; }
.kts-pair figcaption, .kts-detail figcaption { font-size: 12px; color: var(--body-text-color-subdued); margin-bottom: 3px;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
img.exact { image-rendering: pixelated; }
img.drawn { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px; border: 3px solid transparent;
  box-sizing: border-box; margin: 0; }
img.drawn.memorized { border-color: var(--kts-copied); }
.nearest { display: flex; gap: 5px; margin: 5px 0 3px; }
img.near { width: 42px; height: 42px; border-radius: 4px; margin: 0; }
.facts { display: flex; flex-wrap: wrap; gap: 0 10px; font-size: 12.5px; line-height: 1.45;
  color: var(--body-text-color-subdued);  font-variant-numeric: tabular-nums; }
.facts b { color: var(--body-text-color); font-weight: 600; }
.facts .copied { color: var(--kts-copied); }
.kts-sweep { border-collapse: collapse; margin: 0 auto; font-variant-numeric: tabular-nums; }
.kts-sweep caption { caption-side: bottom; padding-top: 8px; font-size: 13px; color: var(--body-text-color-subdued); }
.kts-sweep td { padding: 3px; text-align: center; min-width: 96px; }
.kts-sweep th { padding: 4px 8px; font-weight: 600; }
.kts-sweep img { width: 110px; }
.kts-sweep small { display: block; font-size: 11px; color: var(--body-text-color-subdued); }
.kts-chosen { min-height: 190px; }
.kts-detail { max-width: 220px; margin: 6px auto 0; }
.kts-detail[hidden] { display: none; }
.kts-hint { color: var(--body-text-color-subdued); text-align: center; font-size: 14px; }
.kts-empty { color: var(--body-text-color-subdued); text-align: center; padding: 40px 0; }
@media (max-width: 640px) {
  .gradio-container .main { padding: 10px 14px !important; }
  .kts-pairs { grid-template-columns: 1fr; }
  .gradio-container .row { flex-wrap: wrap; }
  .tab-wrapper, .tab-container { height: auto !important; flex-wrap: wrap !important; max-width: 100%; }
  .tab-container button { padding: 6px !important; font-size: 13.5px !important; }
  .kts-chart text { font-size: 19px; } .kts-chart .label { font-size: 20px; }
  .kts-table th, .kts-table td { padding: 4px 6px !important; font-size: 12.5px; }
  .kts-sweep img { width: 100%; } .kts-sweep td { min-width: 58px; padding: 2px; } .kts-sweep small { font-size: 10px; }
  .kts-sweep th { padding: 2px 4px; font-size: 12px; }
  #top { flex-direction: column; } #top > .column { display: contents; } /* Generate before what may stay as it is */
  #what { order: 1; } #preset { order: 2; } #go { order: 3; } #eta { order: 4; } #by-hand { order: 5; }
  #top > .column > :last-child { order: 6; }
}
"""

# closes "Shape by hand" on a phone, where it fills the first view
FOLD = """() => {
  if (window.matchMedia('(max-width: 640px)').matches) document.querySelector('#by-hand button.label-wrap.open')?.click();
}"""

# shows the details of a point of the population, for a click and for the keyboard
CHOOSE = """
const choose = (point) => {
  for (const other of element.querySelectorAll('.point.chosen')) other.classList.remove('chosen');
  for (const detail of element.querySelectorAll('.kts-detail')) detail.hidden = detail.dataset.detail !== point.dataset.point;
  const hint = element.querySelector('.kts-hint');
  if (hint) hint.hidden = true;
  point.classList.add('chosen');
};
element.addEventListener('click', (event) => { if (event.target.dataset.point) choose(event.target); });
element.addEventListener('keydown', (event) => {
  if (!event.target.dataset.point || !['Enter', ' '].includes(event.key)) return;
  event.preventDefault();
  choose(event.target);
});
"""
