// Prints a line for each image: the number of clock edges before its logits, and these as whole numbers.
// CLASSES, BITS (of a logit) and SIGNED (1 where one can be negative) are defined by the command.
module bench(input clk, input valid, input [7:0] pixel);
    wire done;
    wire [`CLASSES*`BITS-1:0] logits;
    integer edges = 0, j;
    top top(.clk(clk), .valid(valid), .pixel(pixel), .done(done), .logits(logits));
    always @(posedge clk) begin
        edges <= edges + 1;
        if (done) begin
            $write("%0d", edges);
            for (j = 0; j < `CLASSES; j = j + 1)
                $write(" %0d", $signed({`SIGNED == 1 && logits[`BITS*j+`BITS-1], logits[`BITS*j +: `BITS]}));
            $write("\n");
        end
    end
endmodule
