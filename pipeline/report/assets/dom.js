"use strict";
// Small helpers. Text only ever enters the page as text nodes and attributes, never as markup.

const one = (selector, from = document) => from.querySelector(selector);
const all = (selector, from = document) => [...from.querySelectorAll(selector)];

/** An element; attributes by name, `on…` functions as listeners, children as elements or text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
  if (pairs.some(([value]) => value === chosen)) select.value = chosen;
}

const read = () => JSON.parse(one("#data").textContent);
const short = (value) =>
  value === null || value === undefined ? "–"
  : Math.abs(value) >= 1e5 ? value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 2 })
  : value.toLocaleString("en", { maximumSignificantDigits: 4 });

/** White space that one would not see. */
const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";
