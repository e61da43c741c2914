// An image comes in pixel by pixel, one a clock, and passes through the network's pipeline; all logits come out together.
// PIXELS, LOGITS (bits of all of them) and CYCLES (from the last pixel to the logits) are defined before.
module top(
    input clk,                        // every register changes at its rising edge
    input valid,                      // whether `pixel` is read at this edge
    input [7:0] pixel,                // in the order of the array [height, width, channels]
    output done,                      // whether `logits` belong to the image whose last pixel was read CYCLES edges ago
    output [`LOGITS-1:0] logits       // side by side, fixed-point numbers, the first in the lowest bits
);
    reg [8*`PIXELS-1:0] image = 0;
    reg [31:0] count = 0;
    reg [`CYCLES:0] ready = 0;
    wire last = valid && count == `PIXELS - 1;
    always @(posedge clk) begin
        ready <= {ready[`CYCLES-1:0], last};
        if (valid) begin
            image <= {pixel, image[8*`PIXELS-1:8]};
            count <= last ? 0 : count + 1;
        end
    end
    network_wrapper network(.clk(clk), .model_inp(image), .model_out(logits));
    assign done = ready[`CYCLES];
endmodule
