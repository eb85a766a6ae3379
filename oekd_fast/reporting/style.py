"""Style sheet of the page: narrow and wide screens, light and dark mode, and print."""

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #fff; --faint: #59636e; --line: #d1d9e0; --soft: #f4f6f8;
  --accent: #0b57a4; --note: #b45309; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ec; --back: #111418; --faint: #9aa4ae; --line: #343b43;
  --soft: #1b2026; --accent: #6cb6ff; --note: #f0a84b; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 4rem; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 84rem;
  margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2rem) 4rem; overflow-wrap: anywhere; }
main { min-width: 0; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0; }
h3 { font-size: 1.1rem; line-height: 1.3; margin: 0; }
.content > h3, .content > h4 { font-size: 1.02rem; margin: 1.8rem 0 .4rem; }
section > h2 { font-size: 1.45rem; border-top: 2px solid var(--text); padding-top: .8rem; margin-top: 3rem; }
p { max-width: 48rem; margin: .6rem 0; }
p.lead { font-size: 1.1rem; }
p.small { font-size: .88rem; color: var(--faint); }
ul.note { padding-left: 1.6rem; max-width: 48rem; }
.note { background: var(--soft); border-left: 4px solid var(--note); border-radius: 0 6px 6px 0;
  padding: .5rem .8rem; }
a { color: var(--accent); text-underline-offset: .15em; }
nav { font-size: .92rem; margin: 0 0 1.2rem; padding: .7rem 1rem; background: var(--soft); border-radius: 8px; }
nav p { font-weight: 600; margin: 0 0 .2rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: 0; padding: 0; }
nav li > ul { padding-left: 1rem; }
nav li:has(> ul) { flex-basis: 100%; }
nav a { display: inline-block; padding: .15rem 0; text-decoration: none; }
nav a:hover { text-decoration: underline; }
summary { cursor: pointer; }
summary > h2, summary > h3 { display: inline; }
summary:hover { color: var(--accent); }
details { margin: .6rem 0; }
details.chapter { border-top: 1px solid var(--line); margin: 0; padding: .9rem 0; }
.content { padding-bottom: .8rem; }
.wide { overflow-x: auto; overflow-wrap: normal; margin: .8rem 0; }
.wide:has(> table) { background:
  linear-gradient(to right, var(--back) 40%, transparent) 0 0 / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--back) 40%, transparent) 100% 0 / 2rem 100% no-repeat local,
  linear-gradient(to right, var(--line), transparent) 0 0 / .8rem 100% no-repeat scroll,
  linear-gradient(to left, var(--line), transparent) 100% 0 / .8rem 100% no-repeat scroll; }
.wide:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .65rem; text-align: right; white-space: nowrap; }
th { vertical-align: bottom; color: var(--faint); font-weight: 600; }
table.text td { text-align: left; white-space: normal; min-width: 8rem; }
@media (min-width: 60rem) { th { white-space: normal; } }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--back); }
tbody tr:hover td { background: var(--soft); }
.swatch { display: inline-block; width: .75em; height: .75em; border: 2px solid; border-radius: 50%;
  margin-right: .45em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.tiles div { background: var(--soft); border-radius: 8px; padding: .7rem 1rem; }
.tiles dt { font-size: .88rem; color: var(--faint); }
.tiles dd { margin: 0; font-size: .88rem; color: var(--faint); }
.tiles dt + dd { font-size: 1.5rem; line-height: 1.3; font-weight: 600; color: var(--text); }
pre { background: var(--soft); border-radius: 8px; padding: .7rem 1rem; margin: .5rem 0; overflow-x: auto;
  font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: normal; }
code { font-family: ui-monospace, monospace; }
pre code { user-select: all; }
@media (min-width: 72rem) {
  body:has(> nav) { display: grid; grid-template-columns: 13rem minmax(0, 1fr); column-gap: 2.5rem; }
  body > h1 { grid-column: 1 / -1; }
  nav { position: sticky; top: 1rem; align-self: start; max-height: calc(100vh - 2rem); overflow-y: auto; }
  nav ul { display: block; }
}
@media print {
  :root { color-scheme: light; --text: #000; --back: #fff; --faint: #333; --line: #999; --soft: #f4f4f4;
    --accent: #0b57a4; --note: #b45309; font-size: 11px; }
  body, body:has(> nav) { display: block; max-width: none; font-size: 1rem; padding: 0; }
  nav { display: none; }
  details::details-content { content-visibility: visible; display: block; block-size: auto; }
  summary { list-style: none; break-after: avoid; }
  .wide { overflow: visible; break-inside: avoid; }
  th, td { padding: .15rem .35rem; white-space: normal; }
  th:first-child, td:first-child { position: static; white-space: nowrap; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""
