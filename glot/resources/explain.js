"use strict";
// The explain page: tokens coloured by what is chosen; hovering or focusing one shows its neighbours; tau redraws the graph.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const make = (name, text, parent, kind) => {
    const element = document.createElement(name);
    if (text !== null) element.textContent = text;
    if (kind) element.className = kind;
    if (parent) parent.append(element);
    return element;
  };
  const shown = (value, digits = 3) => value === null || value === undefined ? "-" : value.toFixed(digits);
  const signed = (value) => value === null || value === undefined ? "-" : (value > 0 ? "+" : "") + value.toFixed(3);
  const options = (select, names) => { select.replaceChildren(); names.forEach((name, place) => { make("option", name, select).value = place; }); };
  const MOST_NAMED = 40, CELL = 18; // a graph of more tokens has no names at its cells; pixels of a cell with names
  let found = null, chosen = null, tokens = [];

  const views = () => {
    const list = [["readout weight", (side) => side.weights], ["drop without the token", (side) => side.without_token.map((v) => v === null ? null : -v)]];
    list.push(["drop without the word", (side) => side.word_of.map((w) => w < 0 || side.without_word[w] === undefined || side.without_word[w] === null ? null : -side.without_word[w])]);
    if (found.across) list.push(["best match in the other text", (side) => side.matches]);
    const layers = Math.max(...found.sides.map((side) => side.attention.length));
    for (let layer = 0; layer < layers; layer++) list.push(["attention of layer " + (layer + 1), (side, place) => received(side.attention[layer], side, place)]);
    return list.filter((view) => found.sides.some((side) => view[1](side)));
  };
  // what a chosen token receives from each token; without one, what each token sends on average
  const received = (weights, side, place) => {
    if (!weights) return null;
    if (chosen && found.sides[chosen.side] === side) return weights[chosen.place];
    return weights[0].map((_, column) => weights.reduce((sum, row) => sum + row[column], 0) / weights.length);
  };
  const tau = () => parseFloat(at("tau").value);
  const hasInside = () => found.sides.some((side) => side.edges), hasAcross = () => Boolean(found.cross_edges);
  const hasGraph = () => hasInside() || hasAcross();
  const showsInside = () => hasInside() || !hasGraph();
  // the run's own edges where tau is its own, or where its rule has none; else what tau would join
  const isOwn = () => found.tau === null || Math.abs(tau() - found.tau) < 6e-4;
  const joined = (side, i, j) => i === j || !showsInside() ? false : side.edges && isOwn() ? Boolean(side.edges[i][j]) : side.cosines[i][j] > tau();
  const across = (i, j) => hasAcross() && isOwn() ? Boolean(found.cross_edges[i][j]) : found.across[i][j] > tau();
  const isAcross = (number, place, other) => Boolean(found.across) && (number === 0 ? across(place, other) : across(other, place));
  const neighbours = (number, place) => {
    const near = found.sides[number].tokens.filter((_, other) => joined(found.sides[number], place, other));
    return hasAcross() ? [...near, ...found.sides[1 - number].tokens.filter((_, other) => isAcross(number, place, other))] : near;
  };

  const colour = () => {
    const view = views()[at("view").value] || views()[0];
    found.sides.forEach((side, number) => {
      const values = view[1](side) || [], top = Math.max(1e-9, ...values.map((value) => value || 0));
      tokens[number].forEach((element, place) => {
        const share = Math.max(0, (values[place] || 0) / top), level = Math.round(255 - 150 * share);
        element.style.background = "rgb(255," + level + "," + level + ")";
        const isJoined = chosen && (chosen.side === number ? joined(side, chosen.place, place) : isAcross(chosen.side, chosen.place, place));
        element.classList.toggle("joined", Boolean(isJoined));
        element.classList.toggle("chosen", Boolean(chosen && chosen.side === number && chosen.place === place));
      });
    });
  };
  const inform = () => {
    if (!chosen) { at("info").textContent = "Point at a token, or move to it with the tab key, to see its neighbours."; return; }
    const side = found.sides[chosen.side], place = chosen.place;
    const near = neighbours(chosen.side, place);
    at("info").textContent = side.tokens[place] + ": weight " + shown(side.weights && side.weights[place]) + ", without it "
      + signed(side.without_token[place]) + ", joined with " + near.length + " tokens"
      + (near.length && near.length <= 12 ? ": " + near.join(" ") : "");
  };
  const graph = () => {
    at("tau-value").textContent = String(Number(tau().toFixed(3)));
    at("graphs").replaceChildren();
    if (showsInside()) found.sides.forEach((side, number) => {
      const n = side.tokens.length, name = found.sides.length > 1 ? "text " + (number + 1) + ": " : "";
      matrix(side.tokens, side.tokens, (i, j) => joined(side, i, j), true, (edges, alone) => name + (n > 1 ? (100 * edges / (n * (n - 1))).toFixed(0) : "0")
        + " % of the pairs of tokens are joined, " + alone + " of " + n + " tokens stand alone");
    });
    if (found.across) {
      const n = found.sides[0].tokens.length, m = found.sides[1].tokens.length;
      matrix(found.sides[0].tokens, found.sides[1].tokens, across, false, (edges, alone) => "across, text 1 in rows, text 2 in columns: " + (100 * edges / (n * m)).toFixed(0)
        + " % of the pairs of tokens are joined, " + alone + " of " + n + " rows stand alone");
    }
  };
  const matrix = (rows, columns, is, hasDiagonal, words) => {
    const n = rows.length, m = columns.length, isNamed = n <= MOST_NAMED && m <= MOST_NAMED;
    const holder = make("div", null, at("graphs")), frame = make("div", null, holder, isNamed ? "named" : ""), names = (tokens, kind) => {
      const list = make("div", null, frame, kind);
      list.setAttribute("aria-hidden", "true"); // the table below says it too
      tokens.forEach((token) => make("span", token, list));
    };
    if (isNamed) names(columns, "column-names");
    if (isNamed) names(rows, "row-names");
    const canvas = make("canvas", null, frame), pen = canvas.getContext("2d");
    canvas.width = m;
    canvas.height = n;
    if (isNamed) [canvas.style.width, canvas.style.height] = [CELL * m + "px", CELL * n + "px"];
    let edges = 0, alone = 0;
    for (let i = 0; i < n; i++) {
      let own = 0;
      for (let j = 0; j < m; j++) {
        const there = is(i, j);
        own += there ? 1 : 0;
        pen.fillStyle = hasDiagonal && i === j ? "#1d2127" : there ? "#b3273a" : "#f3f5f8";
        pen.fillRect(j, i, 1, 1);
      }
      edges += own;
      alone += own === 0 ? 1 : 0;
    }
    const line = words(edges, alone);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", line);
    make("div", line, holder, "soft");
  };
  const table = () => {
    at("rows").replaceChildren();
    found.sides.forEach((side, number) => side.tokens.forEach((token, place) => {
      const row = make("tr", null, at("rows")), word = side.word_of[place];
      const near = neighbours(number, place).length;
      [token, String(number + 1), shown(side.weights && side.weights[place]), signed(side.without_token[place]),
        word < 0 ? "-" : signed(side.without_word[word]), String(near)].forEach((text) => make("td", text, row));
    }));
  };
  const choose = (side, place) => { chosen = side === null ? null : { side, place }; colour(); inform(); };
  const render = () => {
    found = data[at("text").value][at("run").value];
    chosen = null;
    const answer = found.answer === "a vector" ? "trained without labels: changes are those of the vector's cosine with itself"
      : "answer " + found.answer + " (" + shown(found.value) + ")";
    at("answer").textContent = found.run + ": " + found.pooler + " on " + found.model + ", " + answer
      + (found.without_edges === null ? "" : "; without edges " + shown(found.without_edges));
    const layers = Object.entries(found.layer_weights).map((pair) => pair[0] + ": " + shown(pair[1], 2));
    at("notes").textContent = [...found.notes, ...(layers.length ? ["shares of the hidden layers: " + layers.join(", ")] : [])].join("; ");
    const keep = at("view").value;
    options(at("view"), views().map((view) => view[0]));
    if (keep && keep < views().length) at("view").value = keep;
    at("tau").value = found.tau === null ? 0.5 : found.tau;
    at("tau-line").textContent = found.tau !== null ? "The run's own tau is " + found.tau + "."
      : hasGraph() ? "The run's graph has no tau; the slider moves nothing." : "The run has no graph; the slider shows what tau would join.";
    at("sides").replaceChildren();
    tokens = found.sides.map((side, number) => {
      const line = make("p", null, at("sides"), "tokens");
      line.setAttribute("aria-label", "text " + (number + 1));
      return side.tokens.map((token, place) => {
        const element = make("button", token, line, "token" + (side.special[place] ? " special" : ""));
        element.type = "button";
        element.addEventListener("pointerenter", () => choose(number, place));
        element.addEventListener("pointerleave", () => choose(null));
        element.addEventListener("focus", () => choose(number, place));
        element.addEventListener("blur", () => choose(null));
        return element;
      });
    });
    at("agreement").textContent = found.sides.map((side) => side.agreement === null ? "" : "Rank correlation of weight with the drop without the token"
      + (found.sides.length > 1 ? " (text " + (found.sides.indexOf(side) + 1) + ")" : "") + ": " + shown(side.agreement, 2) + ".").join(" ");
    colour(); inform(); graph(); table();
  };
  options(at("text"), data.map((group) => group[0].sides.map((side) => side.text).join(" | ").slice(0, 80)));
  options(at("run"), data[0].map((one) => one.run + ": " + one.pooler));
  for (const id of ["text", "run"]) { at(id).parentElement.hidden = at(id).options.length < 2; at(id).addEventListener("change", render); }
  at("view").addEventListener("change", colour);
  at("tau").addEventListener("input", () => { graph(); table(); colour(); inform(); });
  render();
})();
