// A map of bytes, enlarged linearly (corners not aligned) and painted in the colours of the scale.
const unpack = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
function between(from, to) { // for each place of `to`: two places of `from` and the second's share
  const places = [];
  for (let i = 0; i < to; i++) {
    const at = Math.max(0, (i + 0.5) * from / to - 0.5), first = Math.min(Math.floor(at), from - 1);
    places.push([first, Math.min(first + 1, from - 1), at - first]);
  }
  return places;
}
function paint(canvas, map, colours, size, slice) { // size: depth, height, width
  const [d, h, w] = map.grid, width = canvas.width, height = canvas.height;
  const bytes = map.unpacked || (map.unpacked = unpack(map.bytes));
  const [z0, z1, dz] = between(d, size[0])[slice], rows = between(h, height), columns = between(w, width);
  const plane = new Float32Array(h * w);
  for (let i = 0; i < h * w; i++) plane[i] = bytes[z0 * h * w + i] * (1 - dz) + bytes[z1 * h * w + i] * dz;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const span = map.high - map.low || 1;
  let at = 0;
  for (const [y0, y1, dy] of rows) for (const [x0, x1, dx] of columns) {
    const above = plane[y0 * w + x0] * (1 - dx) + plane[y0 * w + x1] * dx;
    const below = plane[y1 * w + x0] * (1 - dx) + plane[y1 * w + x1] * dx;
    const value = (above * (1 - dy) + below * dy - map.low) / span;
    const colour = 3 * Math.max(0, Math.min(255, Math.floor(value * 256)));
    image.data[at++] = colours[colour]; image.data[at++] = colours[colour + 1];
    image.data[at++] = colours[colour + 2]; image.data[at++] = 255;
  }
  context.putImageData(image, 0, 0);
}
