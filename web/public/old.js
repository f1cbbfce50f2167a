// For browsers that cannot even read the page's own script: what they lack is said.
(function () {
  var simd = [
    0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
  ];
  if (typeof WebAssembly === 'object' && WebAssembly.validate(new Uint8Array(simd))) return;
  var trouble = document.getElementById('trouble');
  trouble.textContent = 'This browser is too old for the models: they need WebAssembly with SIMD.';
  trouble.hidden = false;
  document.getElementById('work').hidden = true;
})();
