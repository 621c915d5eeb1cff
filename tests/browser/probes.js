// What a person would see wrong with the graph that is open: a list of sentences, empty where all is well.
async () => {
  const faults = [];
  const nodes = app.graph.nodes;
  const name = (node) => `${node.title} (${node.type})`;

  for (const node of nodes) {
    if (!LiteGraph.registered_node_types[node.type]) faults.push(`${name(node)} is missing`);
    if (node.has_errors) faults.push(`${name(node)} has a red frame`);
  }

  // Titles stand above the boxes that nodes say they have.
  const titled = (node) => {
    const title = LiteGraph.NODE_TITLE_HEIGHT;
    return [node.pos[0], node.pos[1] - title, node.size[0], node.size[1] + title];
  };
  const overlap = (a, b) =>
    a[0] < b[0] + b[2] && b[0] < a[0] + a[2] && a[1] < b[1] + b[3] && b[1] < a[1] + a[3];
  const within = (a, b) =>
    a[0] >= b[0] && a[1] >= b[1] && a[0] + a[2] <= b[0] + b[2] && a[1] + a[3] <= b[1] + b[3];
  const boxes = nodes.map((node) => [name(node), titled(node)]);
  const groups = app.graph._groups.map((group) => [`group ${group.title}`, [...group._bounding]]);
  const pairs = (list) => list.flatMap((one, n) => list.slice(n + 1).map((other) => [one, other]));
  for (const [[one, a], [other, b]] of [...pairs(boxes), ...pairs(groups)])
    if (overlap(a, b)) faults.push(`${one} and ${other} overlap`);
  for (const [one, a] of boxes)
    for (const [group, b] of groups)
      if (overlap(a, b) && !within(a, b)) faults.push(`${one} sticks out of ${group}`);

  // Below this size the page draws boxes in place of words.
  const scale = app.canvas.ds.scale;
  const least = app.extensionManager.setting.get("LiteGraph.Canvas.MinFontSizeForLOD") ?? 8;
  if (LiteGraph.NODE_TEXT_SIZE * scale < least) faults.push(`at a scale of ${scale.toFixed(2)} words are not drawn`);

  // What the canvas draws is cut by the page itself, which leaves a mark of its own.
  const drawn = [];
  const fillText = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
    drawn.push(String(text));
    return fillText.call(this, text, ...rest);
  };
  app.canvas.draw(true, true);
  CanvasRenderingContext2D.prototype.fillText = fillText;
  if (!drawn.length && nodes.length) faults.push("no words are drawn at all");
  for (const text of new Set(drawn)) if (/…$|\.\.\.$/.test(text)) faults.push(`cut off: ${text}`);
  for (const node of scale * LiteGraph.NODE_TEXT_SIZE < least ? [] : nodes) {
    if (!drawn.includes(node.getTitle())) faults.push(`the title of ${name(node)} is not drawn whole`);
  }

  // What lies over the canvas as HTML would have to be scrolled.
  const hides = (element) => /auto|scroll|hidden|clip/.test(getComputedStyle(element).overflowY);
  for (const element of document.querySelectorAll(".dom-widget, .dom-widget *")) {
    if (!element.offsetParent || element.matches("video, .comfy-markdown textarea")) continue; // the note's editor
    const more = [element.scrollHeight - element.clientHeight, element.scrollWidth - element.clientWidth];
    if (hides(element) && Math.max(...more) > 2) {
      const text = (element.value ?? element.innerText).trim().slice(0, 60);
      faults.push(`has to be scrolled: ${element.tagName} ${JSON.stringify(text)} by ${more}`);
    }
  }
  const canvas = app.canvas.canvas.getBoundingClientRect();
  for (const node of nodes) {
    const [x, y, width, height] = titled(node).map((value, n) =>
      n < 2 ? (value + app.canvas.ds.offset[n]) * scale + [canvas.left, canvas.top][n] : value * scale,
    );
    for (const { element } of node.widgets ?? []) {
      const box = element?.offsetParent && element.getBoundingClientRect();
      if (!box || !box.width) continue;
      const out = Math.max(x - box.left, y - box.top, box.right - x - width, box.bottom - y - height);
      if (out > 4) faults.push(`a widget of ${name(node)} sticks out by ${Math.round(out)} pixels`);
    }
  }
  return [...new Set(faults)];
};
